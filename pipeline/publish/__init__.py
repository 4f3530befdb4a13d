"""Publishing a build as a dataset: release, card, Croissant, lineage, Energon, verification, export."""
