"""Shares: how much of what is drawn each group of rows gets."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.core.column import PIECE, Source
from flowdata.core.exponential import exp
from flowdata.core.groups import Groups, Name
from flowdata.core.logarithm import log
from flowdata.errors import InvalidLossError

Shares: TypeAlias = Literal["rows", "tokens", "equal", "flow"] | Mapping[Any, float]
By: TypeAlias = Literal["rows", "tokens"]

_NAMED = ("rows", "tokens", "equal", "flow")


def wants_tokens(shares: Shares | None, by: By) -> bool:
    """Whether lengths of rows are needed."""
    return by == "tokens" or (isinstance(shares, str) and shares == "tokens")


def resolve_shares(
    shares: Shares | None, by: By, groups: Groups, lengths: Source | None
) -> NDArray[np.float64] | None:
    """The share of each group, shape (groups,), sum 1; None if they are what the weights give.

    Args:
        shares: "rows" and "tokens", what a group has of these in the data; "equal"; "flow"; or a
            number >= 0 for each group, in proportion. Default: what a group has of ``by``.
        by: what the shares are of: "rows" that are drawn, or their "tokens".
        groups: of n rows.
        lengths: tokens of n rows.

    Raises:
        ValueError: for an unknown option, groups without a number, numbers without a group, and
            where tokens are asked for that are not known.
    """
    if by not in ("rows", "tokens"):
        raise ValueError(f'by must be "rows" or "tokens", got {by!r}')
    shares = by if shares is None else shares
    if wants_tokens(shares, by) and lengths is None:
        raise ValueError(
            "shares of tokens need to know how many each row has: give the table its lengths by "
            "with_lengths, counted by flowdata.lengths"
        )
    if isinstance(shares, Mapping):
        return _given_shares(shares, groups)
    if not isinstance(shares, str) or shares not in _NAMED:
        raise ValueError(
            'shares must be "rows", "tokens", "equal", "flow" or a number for each group, '
            f"got {shares!r}"
        )
    if shares == "equal":
        return np.full(len(groups), 1.0 / len(groups))
    if shares == "flow":
        return None
    sizes = groups.sizes().astype(np.float64)
    if shares == "tokens" and lengths is not None:
        sizes = _sum_by_group(groups, None, lengths)
    if not sizes.any():
        raise ValueError("no row has a token: there is nothing to share")
    found: NDArray[np.float64] = sizes / sizes.sum()
    return found


def _given_shares(shares: Mapping[Any, float], groups: Groups) -> NDArray[np.float64]:
    missing = [name for name in groups.names if name not in shares]
    if missing:
        raise ValueError(f"shares have no number for {_listed(missing)}: give each group one, or 0")
    unknown = [name for name in shares if name not in groups.names]
    if unknown:
        raise ValueError(
            f"shares are given for {_listed(unknown)}, but no row is of such a group; there are "
            f"{_listed(list(groups.names))}"
        )
    try:
        found = np.array([float(shares[name]) for name in groups.names])
    except (TypeError, ValueError) as error:
        raise ValueError(f"shares must be numbers, got {dict(shares)!r}") from error
    if not (np.isfinite(found).all() and (found >= 0.0).all() and found.any()):
        raise ValueError(f"shares must be finite numbers >= 0, and not all 0, got {dict(shares)!r}")
    # In two steps: the sum of large numbers may overflow.
    found /= found.max()
    found /= found.sum()
    return found


def _listed(names: list[Name]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown


def share_out(
    logarithms: NDArray[np.float64],
    largest: NDArray[np.float64],
    groups: Groups,
    shares: NDArray[np.float64] | None,
    sizes: Source | None,
) -> float:
    """Scale the weights of each group to its share, in place; the logarithm of the largest weight.

    All weights together keep their sum: shares move it from one group to another.

    Args:
        logarithms: of the weights over the largest of their group, shape (n,).
        largest: logarithms of the largest weight of each group, shape (groups,).
        groups: of the rows.
        shares: of each group, or None if its weights say.
        sizes: what each row counts, if not 1.

    Returns:
        What was the logarithm of 1: afterwards 0 is that of the largest of all weights.

    Raises:
        InvalidLossError: naming a group that has a share, but no row that can be drawn.
    """
    if shares is None:
        offsets, over = largest, 0.0
    else:
        sums = _sum_by_group(groups, logarithms, None)
        counted = sums if sizes is None else _sum_by_group(groups, logarithms, sizes)
        _require_drawable(counted, shares, groups)
        with np.errstate(divide="ignore", invalid="ignore"):
            offsets = log(np.where(shares > 0.0, shares / counted, 0.0))
            before, after = largest + np.log(sums), offsets + np.log(sums)
        over = _log_sum(before) - _log_sum(after)
    top = float(offsets.max())
    if not math.isfinite(top):
        raise InvalidLossError(f"all {logarithms.size:,} weights are 0: no row can be drawn")
    # A row of weight 0 keeps it: minus infinity takes no number.
    for start in range(0, logarithms.size, PIECE):
        logarithms[start : start + PIECE] += (offsets - top)[groups.codes[start : start + PIECE]]
    return top + over


def _require_drawable(
    sums: NDArray[np.float64], shares: NDArray[np.float64], groups: Groups
) -> None:
    without = [
        name
        for name, total, share in zip(groups.names, sums, shares, strict=True)
        if share > 0.0 and total == 0.0
    ]
    if without:
        raise InvalidLossError(
            f"no row of {_listed(without)} can be drawn, its weights or tokens are all 0: give "
            "that group the share 0, or leave it out"
        )


def _log_sum(logarithms: NDArray[np.float64]) -> float:
    logarithms = logarithms[np.isfinite(logarithms)]
    top = float(logarithms.max())
    return top + math.log(float(np.exp(logarithms - top).sum()))


def _sum_by_group(
    groups: Groups, logarithms: NDArray[np.float64] | None, sizes: Source | None
) -> NDArray[np.float64]:
    """Sums of weights, of sizes, or of their products, in pieces: in little memory."""
    sums = np.zeros(len(groups))
    for start in range(0, groups.codes.size, PIECE):
        rows = slice(start, start + PIECE)
        counted = np.ones(groups.codes[rows].size)
        if logarithms is not None:
            counted = exp(logarithms[rows].copy())
        if sizes is not None:
            counted *= sizes[rows]
        sums += np.bincount(groups.codes[rows], weights=counted, minlength=len(groups))
    return sums
