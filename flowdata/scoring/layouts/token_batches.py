"""Batches of samples of similar length, under a budget of tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.scoring.layouts.token_rows import Tokens

# So many tokens of padding in a source are worth it where they save some in the targets.
_ABOUT = 8


def require_budget(max_tokens: int | None) -> None:
    """Refuse a budget that has room for no token."""
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")


def make_batches(
    places: NDArray[np.int64], samples: Sequence[Tokens], budget: int, *, is_limit: bool = True
) -> Iterator[NDArray[np.int64]]:
    """Cut samples into batches of similar length, of ``budget`` tokens with padding.

    That many at most, where it is a limit, else as near to it as whole rows can be. In a batch are
    samples of the same kind, or one that can only be alone.
    """
    sides = np.array([sample.sides for sample in samples])
    # By the target, among sources of about a length.
    coarse = sides.copy()
    coarse[:, :-1] //= _ABOUT
    # Longest first: what runs out of memory does so at once, and what fits goes on fitting.
    order = places[np.lexsort(-coarse[places].T[::-1])]
    alike: dict[Any, list[int]] = {}
    for place in order.tolist():
        kind = samples[place].kind
        alike.setdefault(place if kind is None else kind, []).append(place)
    for members in alike.values():
        yield from _cut(np.array(members), sides[members], budget, 0.0 if is_limit else 0.5)


def _cut(
    members: NDArray[np.int64], sides: NDArray[np.int64], budget: int, less: float
) -> Iterator[NDArray[np.int64]]:
    start = 0
    while start < len(members):
        # Tokens of a batch that ends here; more rows never have fewer.
        widths = np.maximum.accumulate(sides[start : start + budget + 1], axis=0).sum(axis=1)
        # Of the last row, the half that may be over the budget does not count.
        tokens = (np.arange(1, len(widths) + 1) - less) * np.maximum(widths, 1)
        rows = max(int(np.searchsorted(tokens, budget, side="right")), 1)
        yield members[start : start + rows]
        start += rows
