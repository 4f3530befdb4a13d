"""The training half: consumes shards, pre-trains BriVL, evaluates and uses it. Never imports `pipeline`."""
