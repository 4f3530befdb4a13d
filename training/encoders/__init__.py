"""Encoders, one file each: file name = `image.encoder` or `text.encoder` in the config; see training/towers.py."""
