"""Defines a dataset: the build specification and the shard contract.

The leaf of the project: `pipeline` and `training` both import it, and it imports neither.
"""
