"""Matching: which images and which texts are the same, and which pairs are kept. Knows no build."""
