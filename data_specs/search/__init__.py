"""Search over embedded samples: an index folder, written by `wenlan-train embed`, opened by both halves.

folder.py       the folder: index.json, its lock, how files come and go
index.py        parts are written, finished, rewritten without removed rows
rows.py         metadata of the rows, and filters
vectors.py      exact and approximate search by vector;  words.py  full text;  ranking.py  both together
search.py       SearchIndex: queries, hits;  pictures.py  the stored picture of a hit
queries.py, picture_tower.py, onnx_file.py      towers as ONNX files
"""
