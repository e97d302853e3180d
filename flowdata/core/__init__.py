"""Weights and draws as pure functions of arrays: numpy only, no torch, no files."""
