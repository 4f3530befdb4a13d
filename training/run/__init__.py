"""A training run: the loop, its start and resume, its cost."""
