"""Commands of `wenlan-train`, one file per group: their arguments, and what they call."""
