"""Encoders, one file each: file name = `image.encoder` or `text.encoder` in the config (`training.towers.tower`)."""
