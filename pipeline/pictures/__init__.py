"""Pictures: decoding, encoding, models."""
