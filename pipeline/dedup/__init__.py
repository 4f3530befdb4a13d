"""Helpers of the stages from `signatures` to `dedup`: runs, earlier builds, the pass over edges, splits."""
