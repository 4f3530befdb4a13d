"""Storage of results: partitions and records, builds, and STORE."""
