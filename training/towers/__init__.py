"""Towers and what they are made of: backbones, layers, region pooling, recomputation."""
