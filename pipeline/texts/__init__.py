"""Texts: charsets, folding, forms, words, personal data."""
