"""A build becomes a dataset: release, card, Croissant, Energon, verification, export."""
