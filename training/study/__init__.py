"""The study (`make study`): does the paper's claim hold that the queue beats in-batch CLIP, and a single tower?"""
