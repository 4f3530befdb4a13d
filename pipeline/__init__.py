"""Builds Chinese image-text datasets: crawl, extract, fetch, filter, deduplicate, detect, pack, report, publish.

Start reading at `pipeline.run`. Never imports `training`; what both share is `data_specs`.
"""
