"""Towers of finished checkpoints, and of the released BriVL and of transformers, in and out."""
