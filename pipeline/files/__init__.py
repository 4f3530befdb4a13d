"""Files on a disk or behind a URL: folders, tars, files that a source names, Parquet, columns of digests."""
