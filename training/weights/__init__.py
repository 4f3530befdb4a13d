"""Import and export of towers: finished checkpoints, the released BriVL, and transformers folders."""
