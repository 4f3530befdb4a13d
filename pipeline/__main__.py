"""`python -m pipeline` is `wenlan-data`."""

from pipeline.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
