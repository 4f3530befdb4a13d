"""What a checkpoint is for: evaluation, embedding, export, released weights."""
