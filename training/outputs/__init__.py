"""What a training leaves: checkpoints, journal, curves, trackers."""
