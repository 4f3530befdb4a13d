"""Captions: a decoder that writes one about an image, and what its captions are worth."""
