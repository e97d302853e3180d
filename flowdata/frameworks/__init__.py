"""What frameworks that own the training loop need: the epoch named, the position restored.

`trainer` is for transformers (and TRL), `lightning` for Lightning. Each imports its framework, so
nothing here is imported with flowdata. `asking` finds out who draws, for the doors' warnings.
"""
