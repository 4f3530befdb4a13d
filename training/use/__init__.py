"""Uses of a checkpoint: evaluation, embedding, export, released weights."""
