"""What the stages from `rank` to `dedup` have in common: runs, what is compared, what earlier builds kept, splits."""
