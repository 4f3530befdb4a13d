"""Rows that are passed from stage to stage, the decisions about them, and accounts of raw input."""
