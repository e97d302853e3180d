"""What the values of weights are divided by."""

from typing import Literal, TypeAlias

Normalization: TypeAlias = Literal["mean", "max", "sum"] | None


def require_known(normalize: Normalization) -> Normalization:
    """The option itself.

    Raises:
        ValueError: for another one.
    """
    if normalize not in (None, "mean", "max", "sum"):
        raise ValueError(f'normalize must be None, "mean", "max" or "sum", got {normalize!r}')
    return normalize
