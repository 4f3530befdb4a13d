"""Files on a disk or behind a URL: folders, tars, inputs, Parquet."""
