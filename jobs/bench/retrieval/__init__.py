"""Retrieval quality on public data: corrections, negatives, and what stale workers cost."""
