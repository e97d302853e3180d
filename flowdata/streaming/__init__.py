"""Weighted streams from WebDataset shards."""
