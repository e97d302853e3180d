"""Draws for map-style data: samplers, and a data set of draws."""
