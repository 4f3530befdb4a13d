"""Bounds of pictures that both halves check before they decode one."""
