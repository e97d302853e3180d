"""A pass over rows: shared among ranks, kept on disk as it goes, and going on where it ended."""
