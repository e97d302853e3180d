"""How a model is run, and what its loss of a sample is."""
