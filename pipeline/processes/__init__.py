"""Processes of a build: actors, confined children, holders of models, and what each says of itself."""
