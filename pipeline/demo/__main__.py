"""`python -m pipeline.demo`: see `pipeline.demo.job`."""

from pipeline.demo.job import main

if __name__ == "__main__":
    raise SystemExit(main())
