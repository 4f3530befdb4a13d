"""Uses of a checkpoint: embedding, search indexes, export."""
