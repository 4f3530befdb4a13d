"""Captions: a decoder that describes an image, and metrics of its captions."""
