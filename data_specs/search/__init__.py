"""Search over embedded samples: an index folder, written by `wenlan-train embed`, opened by both halves.

index.py        the folder: index.json, and how it is written and removed from
rows.py         one row per sample: the columns of its metadata, and filters over them
scan.py         exact search over memory-mapped vectors
search.py       SearchIndex: queries, hits, pictures
"""
