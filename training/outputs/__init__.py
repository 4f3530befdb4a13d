"""Outputs of a training run: checkpoints, journal, curves, trackers."""
