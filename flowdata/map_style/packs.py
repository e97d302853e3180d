"""FlowPacks: the packs of an epoch as a map-style data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowdata.core.lengths import HasLengths
from flowdata.core.pack_plan import PackPlan, TooLong
from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.guards.packs import PacksGuard
from flowdata.map_style import inner
from flowdata.map_style.checked_weights import require_alpha, require_length
from flowdata.map_style.draw_numbers import draw_numbers, many_draws
from flowdata.map_style.epoch_items import EpochItems, require_numbered_rows
from flowdata.map_style.packed_rows import Sample, join, read_sample
from flowdata.map_style.planned_packs import plan_packs


class FlowPacks(EpochItems[Any, PackPlan]):
    """The draws of each epoch in packs: item j is pack j, of whole samples, without padding.

    A pack is a dict of int64 tensors of shape (T,), T <= ``max_length``: ``input_ids``; ``labels``,
    of which the first of each sample is -100; and ``position_ids``, which begin at 0 for each
    sample. By these, models of transformers keep samples apart: by variable-length flash attention,
    or by a block mask; give them no ``attention_mask``. Batches of several packs are made by
    `PackCollator`.

    The number of packs is the same in every epoch, and a multiple of ``batch_size``, so that ranks
    make equal steps. Every row is drawn as often as `EpochPlan` says, see `PackPlan`. Which epoch
    is drawn, `set_epoch` and states are as in `FlowDataset`.

    Args:
        dataset: map-style data set of n rows: dicts with ``input_ids`` (lists, arrays or tensors)
            and, if not all tokens are learned, ``labels``, or masks as TRL has them
            (``completion_mask``, ``assistant_masks``: 1 is learned). Texts and numbers beside them
            are left out; other arrays of numbers, and padding, are refused. Those of `reweight` are
            packed with their weights, for its ``collate_fn``.
        weights, epoch_size, seed, scheme, alpha, arrange, strata: see `EpochPlan`; of the
            arrangements only Strata, which share out the epoch.
        lengths: tokens of each row: n whole numbers, or a LossTable that has them; default those
            of ``weights``, if it is such a table.
        max_length: tokens that a pack has room for.
        batch_size: packs that are trained on together, by all ranks.
        too_long: "raise", or "truncate", which cuts longer rows to ``max_length``.

    Raises:
        MismatchError: when data set, weights and lengths are of different rows, or rows are
            weighted for another alpha; on reading, for a row of another length.
        ValueError: for rows that are too long, options that do not fit, or, on reading, rows that
            cannot be packed.
        TypeError: for a data set without rows by number, or, on reading, without ``input_ids``.

    >>> rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}]
    >>> packs = FlowPacks(rows, [1.0, 1.0], [3, 2], max_length=6)
    >>> packs[0]["position_ids"].tolist() in ([0, 1, 2, 0, 1], [0, 1, 0, 1, 2])
    True
    """

    _OWNER, _SAMPLER = "FlowPacks", "FlowPackSampler"

    def __init__(
        self,
        dataset: Any,
        weights: FlowWeights | HasWeights | ArrayLike,
        lengths: HasLengths | ArrayLike | None = None,
        max_length: int | None = None,
        *,
        batch_size: int = 1,
        epoch_size: EpochSize = "full",
        seed: int = 0,
        scheme: Scheme = "systematic",
        alpha: float = 1.0,
        arrange: Strata | None = None,
        strata: Strata | None = None,
        too_long: TooLong = "raise",
    ) -> None:
        require_numbered_rows(dataset)
        plan = plan_packs(
            weights,
            lengths,
            max_length,
            batch_size=batch_size,
            too_long=too_long,
            epoch_size=epoch_size,
            seed=seed,
            scheme=scheme,
            alpha=alpha,
            arrange=arrange,
            strata=strata,
        )
        require_length(dataset, len(plan.plan.weights))
        require_alpha(dataset, weights, alpha)
        super().__init__(dataset, plan)
        self._packs_guard = PacksGuard()
        self._cut = plan.max_length if too_long == "truncate" else None

    @property
    def fill(self) -> float:
        """The share of the packs' room that is tokens, in the mean over epochs."""
        return self._plan.fill

    def __getitem__(self, pack: Any) -> Any:
        """A pack, or a list of those of a list, slice or array of numbers."""
        places = draw_numbers(pack, len(self._plan), item="pack")
        if isinstance(places, int):
            return self._packs(self._rows(np.array([places])))[0]
        return self._packs(self._rows(places))

    def __getitems__(self, packs: Sequence[int]) -> list[Any]:
        self._packs_guard.on_items()
        places = many_draws(packs, len(self._plan), item="pack")
        return self._packs(self._rows(places, is_batch=True))

    def _rows_at(self, plan: PackPlan, places: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        return plan.of(places)

    def _packs(self, packs: list[NDArray[np.int64]]) -> list[Any]:
        """Packs of rows, all of which are fetched at once."""
        rows: list[int] = np.concatenate([np.zeros(0, np.int64), *packs]).tolist()
        fetched = iter(inner.fetch_rows(self.dataset, rows) if rows else ())
        return [
            join([self._sample(next(fetched), row) for row in pack], pack)
            for pack in (pack.tolist() for pack in packs)
        ]

    def _sample(self, row: Any, number: int) -> Sample:
        length = int(self._plan.lengths[number])
        return read_sample(row, number, length=length, max_length=self._cut)
