"""One HTML page becomes its images with their texts."""
