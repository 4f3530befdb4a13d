"""The studio: a local web page in which the owner of a dataset looks at every candidate of a build, kept or dropped.

place         what was opened: a build, a release, the builds of a folder; what it lacks, in words
facets        what candidates are counted and chosen by
catalog       the candidates of a place: counts, pages of rows, full-text search (DuckDB over the build's Parquet)
preparation   columns that need a join (text kind, size, cluster, new), made once per build
items         one candidate in words: its fate, evidence, leader, regions, what each stage saw
images        its picture, and thumbnails
similar       neighbours in a search index that lies beside the build
actions       takedowns and publishing, as the commands that they are
server        the HTTP server; `page/` is what it serves
"""
