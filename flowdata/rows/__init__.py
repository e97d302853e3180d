"""Rows of a stream, and of any data, by the key that each of them has."""
