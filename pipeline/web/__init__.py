"""A polite and guarded web client: addresses, pace, robots, pages, images, frontier, WARC."""
