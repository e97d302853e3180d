"""Advice where a framework uses a sampler, data set or stream wrongly."""
