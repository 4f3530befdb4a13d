"""HTTP servers of both halves: the rules for every request."""
