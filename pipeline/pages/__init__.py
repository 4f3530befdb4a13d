"""HTML pages: the images of a page with their texts."""
