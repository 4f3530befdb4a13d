"""Which images and which texts are the same. Knows no build."""
