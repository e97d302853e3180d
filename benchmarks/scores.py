"""Scores: what a method kept and learned in each seed, and in how many it is ahead of others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Score:
    """How much a method kept and learned in each seed, on one scale: shape (seeds,).

    Args:
        kept, learned, hardest: of what it knew, of the new task and of the hardest tenth of that;
            more is better.
    """

    kept: NDArray[np.float64]
    learned: NDArray[np.float64]
    hardest: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of what is kept and learned."""
        return (self.kept + self.learned) / 2


class Wins(NamedTuple):
    """In how many seeds a method is ahead of all others it is compared with.

    Args:
        better: by its mean.
        both: it kept more, and learned as much.
        seeds: of how many.
    """

    better: int
    both: int
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether it is ahead by its mean in nine tenths of the seeds."""
        return self.better >= 0.9 * self.seeds

    @property
    def cells(self) -> tuple[str, str]:
        """For a table."""
        return f"{self.better} of {self.seeds}", f"{self.both} of {self.seeds}"


def beaten(ours: Score, rivals: Sequence[Score]) -> Wins:
    """How often a score is above those of all rivals."""
    better = np.all([ours.mean > each.mean for each in rivals], axis=0)
    both = np.all(
        [(ours.kept > each.kept) & (ours.learned >= each.learned) for each in rivals], axis=0
    )
    return Wins(int(better.sum()), int(both.sum()), better.size)
