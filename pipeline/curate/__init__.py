"""Judges of pairs: what dedup kept is judged by models on pixels, watermarks, pair scores, semantic copies and balance.

One file a judge; `pipeline.curate.judging` says what a judge is, `pipeline.stages.curate` lists them and selects.
"""
