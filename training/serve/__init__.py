"""The HTTP server of a checkpoint: embeddings, search, and the page that shows both (`wenlan-train serve`)."""
