"""Chinese texts: charsets, cleaning, folding for comparison, plain forms for filters, words, personal data."""
