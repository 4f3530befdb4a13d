"""The method: losses, key queue, key towers, exchange between ranks."""
