"""What frameworks that own the training loop need: the epoch set, the position restored.

`trainer` is for transformers, `trl` for TRL, `lightning` for Lightning. Each imports its framework,
so nothing here is imported with flowdata. `sources` finds what a loader draws from.
"""
