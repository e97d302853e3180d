"""FlowPackSampler: the packs of an epoch as a torch batch sampler."""

from collections.abc import Iterator
from typing import Any, Self

from numpy.typing import ArrayLike

from flowdata.core.cursor import Cursor
from flowdata.core.lengths import HasLengths
from flowdata.core.pack_plan import PackPlan, TooLong
from flowdata.core.plan import EpochSize, Scheme
from flowdata.core.strata import Strata
from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.guards.packs import require_batch_sampler
from flowdata.map_style.checked_weights import check_drawn
from flowdata.map_style.plan_sampler import PlanSampler
from flowdata.map_style.planned_packs import plan_packs

_CHUNK = 256
"""Packs whose rows are looked up at a time."""


class FlowPackSampler(PlanSampler[list[int]]):
    """Draws packs of rows; give it to a DataLoader as ``batch_sampler=``.

    Each batch is one pack: a list of rows of at most ``max_length`` tokens in all, for a
    ``collate_fn`` that puts them into one row of the model's input, `pack_rows` or transformers'
    ``DataCollatorWithFlattening``. The number of packs is the same in every epoch, and a multiple
    of ``batch_size``. Every ``iter()`` is the next epoch, unless `set_epoch` names one.

    Of R replicas, rank r takes packs r, r + R, r + 2R, ...; where R divides ``batch_size``, all
    ranks have as many. The state is (seed, epoch, position), where the position counts the packs
    of all ranks; it can be loaded with another number of ranks. See `FlowSampler`.

    Args:
        weights, epoch_size, seed, scheme, alpha, arrange, strata: see `EpochPlan`; of the
            arrangements only Strata, which share out the epoch.
        lengths: tokens of each row: n whole numbers, or a LossTable that has them; default those
            of ``weights``, if it is such a table. They are taken on trust: `FlowPacks` compares
            them with the rows.
        max_length: tokens that a pack has room for.
        batch_size: packs that are trained on together, by all ranks.
        num_replicas: R.
        rank: r, in [0, R).
        drop_last: leave out the packs of the last incomplete round of ranks.
        dataset: the data that is drawn from: its length is checked, and nothing else done with it.
        too_long: "raise", or "truncate", for a ``collate_fn`` that cuts longer rows to
            ``max_length``.

    Raises:
        MismatchError: for weights, lengths or a data set of other rows, or rows that `reweight`
            has weighted for another alpha.
        ValueError: for rows that are too long, options that do not fit, or a rank outside
            [0, num_replicas).

    >>> packs = FlowPackSampler([1.0, 1.0, 1.0], [3, 2, 4], max_length=5)
    >>> len(packs), sorted(sorted(pack) for pack in packs)
    (2, [[0, 1], [2]])
    """

    def __init__(
        self,
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
        num_replicas: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        dataset: Any = None,
        too_long: TooLong = "raise",
    ) -> None:
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
        check_drawn(dataset, weights, plan.plan.weights, alpha)
        super().__init__(
            plan,
            rank=rank,
            num_replicas=num_replicas,
            drop_last=drop_last,
            item="pack",
            items=packs_of,
            chunk=_CHUNK,
        )

    def __iter__(self) -> Iterator[list[int]]:
        require_batch_sampler()
        return super().__iter__()

    @property
    def sampler(self) -> Self:
        """Itself: accelerate, on several processes, and Lightning name epochs to this attribute."""
        # accelerate 1.15, data_loader.py, DataLoaderShard.set_epoch; lightning 2.6,
        # fabric/utilities/data.py, _set_sampler_epoch.
        return self

    @property
    def plan(self) -> PackPlan:
        """The packs of `epoch`."""
        plan: PackPlan = super().plan
        return plan

    @property
    def fill(self) -> float:
        """The share of the packs' room that is tokens, in the mean over epochs."""
        return self.plan.fill

    @property
    def _weights(self) -> FlowWeights:
        return self.plan.plan.weights


def packs_of(place: Cursor, start: int, stop: int) -> list[list[int]]:
    """The rows of each pack in steps [start, stop) from a place on."""
    return [rows.tolist() for rows in place.plan.of(place.numbers(start, stop))]
