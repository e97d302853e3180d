"""Rows of all parts of a data set, by which all who share a pass decide alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowdata.scoring.models.inference import read_these
from flowdata.table.fingerprint import rows_read
from flowdata.tar.rows import ShardRows


@dataclass(frozen=True)
class ProbeRows:
    """Some rows of a data set: the same whoever asks, and whichever rows that one scores.

    Args:
        dataset: map-style data set, or the list of the first rows of a stream.
    """

    dataset: Any

    def read(
        self,
        number: int,
        rows: NDArray[np.int64],
        read: Sequence[Any],
        collate: Callable[[list[Any]], Any] | None,
    ) -> tuple[NDArray[np.int64], Sequence[Any]]:
        """Numbers of some rows, and what is made of each.

        Args:
            number: how many, at most.
            rows: rows that were read already, in their order.
            read: what `collate` made of these.
            collate: makes a list of as many values as rows.
        """
        size = len(self.dataset)
        # Those of tar shards that are far apart take a request each.
        size = min(size, number) if isinstance(self.dataset, ShardRows) else size
        chosen = np.array(rows_read(size, number), dtype=np.int64)
        if np.isin(chosen, rows).all():
            return chosen, [read[place] for place in np.searchsorted(rows, chosen).tolist()]
        (found,) = read_these(self.dataset, [chosen], collate_fn=collate, num_workers=0)
        return chosen, found
