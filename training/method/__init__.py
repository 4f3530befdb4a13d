"""The method: losses, key queue, key towers, accumulation, exchange between ranks."""
