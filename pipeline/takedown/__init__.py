"""Removal from builds and STORE: takedowns and garbage collection."""
