"""What a dataset is: the build specification and the shard contract.

The leaf of the project. Imports neither `pipeline` nor `training`; both import this.
"""
