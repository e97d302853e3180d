"""Advice where a framework uses a sampler, data set or stream wrongly."""

from flowdata.guards.switch import off, on

__all__ = ["off", "on"]
