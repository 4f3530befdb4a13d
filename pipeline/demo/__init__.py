"""The demo: its corpus from a package manager, two web sites on loopback, and the main job on them."""
