"""Losses of models of language: causal ones, encoder-decoders, labellers of tokens."""
