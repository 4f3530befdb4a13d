"""The training half: consumes shards, pre-trains BriVL, evaluates and uses it.

Only `training.use.detector` imports `pipeline`, lazily, for boxes of pictures that come without any.
"""
