"""The demo: a corpus from a package manager, two web sites on loopback that serve it, and the main job on them."""
