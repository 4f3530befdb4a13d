"""Where results lie: partitions and records, builds, and STORE."""
