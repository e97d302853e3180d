"""Clusters: neighbouring rows of shards, so many that they can be packed on their own."""

import itertools
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flowdata.core.permutation import CHUNK

Terms: TypeAlias = Callable[[int, int], NDArray[np.float64]]
"""A number for each of the rows [first, last): shape (last - first,)."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """Rows cut into clusters, and these put together to sections.

    A section is one shard, or some neighbours where these are small; it is read to its end before
    others are opened, cluster by cluster. A cluster is all of it, or a run of its rows.

    Attributes:
        bounds: first row of each cluster, and n: int64, shape (clusters + 1,).
        sections: first cluster of each section, and the number of clusters, ascending.
    """

    bounds: NDArray[np.int64]
    sections: NDArray[np.int64]


def cluster_shards(sizes: Terms, bounds: NDArray[np.int64], least: float) -> Clusters:
    """Clusters of at least so large a size, where the shards together have it.

    Args:
        sizes: of each row, >= 0.
        bounds: first row of each shard, and n.
        least: size of a cluster.

    >>> ones = lambda first, last: np.ones(last - first)
    >>> found = cluster_shards(ones, np.array([0, 3, 9, 29]), 8)
    >>> found.bounds.tolist(), found.sections.tolist()
    ([0, 9, 19, 29], [0, 1, 3])
    """
    edges = sums_before(sizes, bounds)
    known, shards = edges.tolist(), bounds.size - 1
    cuts = [0]
    while (end := bisect_left(known, known[cuts[-1]] + least, lo=cuts[-1] + 1)) <= shards:
        cuts.append(end)
    # What is left over at the end goes to the section before it.
    cuts = [*(cuts[:-1] or cuts), shards]
    runs = [
        _cut_evenly(sizes, int(bounds[first]), int(bounds[last]), known[last] - known[first], least)
        for first, last in itertools.pairwise(cuts)
    ]
    sections = np.cumsum([0, *map(len, runs)])
    return Clusters(np.concatenate([*runs, bounds[-1:]]), sections)


def sums_before(terms: Terms, bounds: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of the terms of all rows before each of some, ascending from 0."""
    edges = np.zeros(bounds.size)
    placed = 0.0
    for start in range(0, int(bounds[-1]), CHUNK):
        sums = placed + np.cumsum(terms(start, min(start + CHUNK, int(bounds[-1]))))
        first, last = np.searchsorted(bounds, (start, start + sums.size), side="right")
        edges[first:last] = sums[bounds[first:last] - start - 1]
        placed = float(sums[-1])
    return edges


def _cut_evenly(
    sizes: Terms, first: int, last: int, total: float, least: float
) -> NDArray[np.int64]:
    """Where rows begin that are about equal parts of [first, last), none below a size."""
    parts = int(total // least)
    if parts < 2:
        return np.array([first])
    sums = np.cumsum(sizes(first, last))
    cuts = np.searchsorted(sums, sums[-1] * np.arange(1, parts) / parts) + 1
    # A row of a large size may be more than a part.
    return first + np.unique(np.concatenate([[0], cuts[cuts < last - first]]))
