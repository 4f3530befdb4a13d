"""Publishing a build as a dataset: release, card, Croissant, verification."""
