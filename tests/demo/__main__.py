"""`python -m tests.demo`: see `tests.demo.job`."""

from tests.demo.job import main

if __name__ == "__main__":
    raise SystemExit(main())
