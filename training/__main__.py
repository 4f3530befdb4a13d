"""`python -m training` and `torchrun -m training`: the same as `wenlan-train`."""

from training.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
