"""Judges of the pairs that dedup kept: models on pixels, watermarks, pair scores, semantic copies, balance.

One file a judge; `pipeline.curate.judging` says what a judge is, `pipeline.stages.curate` lists them and selects.
"""
