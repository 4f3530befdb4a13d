"""Chinese text: folding, variants of characters, words, BERT's tokens."""
