"""Passes, and batches of a pipeline, that Ray, Spark or datasets run."""
