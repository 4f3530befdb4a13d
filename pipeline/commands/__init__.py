"""The commands of `wenlan-data`, one file a group, and its terminal output."""
