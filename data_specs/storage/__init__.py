"""Files and locks on disks and object stores, for both halves."""
