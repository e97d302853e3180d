"""Progress: how far an epoch of a stream has come, over all ranks, workers and restarts."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flowdata.errors import MismatchError
from flowdata.plan import EpochPlan, non_negative
from flowdata.shards.order import Layout, Positions, StreamOrder, Window, share_of
from flowdata.shards.passes import Passes

_VERSION = "version"
_SEED = "seed"
_EPOCH = "epoch"
_STRETCHES = "stretches"
_WORKER = "worker"
_DONE = "done"
_ENDED = "ended"
_STATE_VERSION = 1


@dataclass(frozen=True)
class Stretch:
    """A part of an epoch run with one layout, after which each rank had done so many draws."""

    layout: Layout
    done: int


class Run:
    """One worker's part of one epoch.

    Attributes:
        epoch: its number.
        owed: draws of this worker, with those done before a resume.
        done: draws that were given out.
        drawn: draws that were read, ahead of those given out.
        ended: whether it gave out all.
    """

    def __init__(self, order: StreamOrder, positions: Positions, part: Sequence[int]) -> None:
        self._order, self._positions, self._part = order, positions, part
        self.epoch = order.epoch
        self.owed = len(positions)
        self.done = self.drawn = 0
        self.ended = False

    def windows(self, skip: int) -> Iterator[tuple[Window, int]]:
        """The windows from a draw on."""
        return self._order.windows(self._positions, self._part, skip)


class Progress:
    """What a stream's epochs are made of, and where in them it is."""

    def __init__(
        self,
        plan: EpochPlan,
        bounds: NDArray[np.int64],
        *,
        ranks: int,
        rank: int,
        drop_last: bool,
        window: int,
        shards_open: int,
    ) -> None:
        if window + shards_open > 1 << 16:
            raise ValueError(f"window and shards_open can be 65,536 together, got {window:,}")
        self._plan, self._bounds = plan, bounds
        self._ranks, self._rank, self._drop_last = ranks, rank, drop_last
        self._window, self.shards_open = window, shards_open
        self._passes = Passes(plan.seed)
        self._stretches: tuple[Stretch, ...] = ()
        """Those of the epoch that is to come or running, the last one that of this process."""
        self._stretches_epoch = -1
        self._own_done: tuple[int, int] | None = None
        self._run: Run | None = None
        self._ended_before = False
        if self.per_rank == 0:
            raise ValueError(
                f"drop_last=True leaves no draw: the epoch has {len(plan)} for {ranks} ranks"
            )

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._passes.to_come()

    @property
    def ranks(self) -> int:
        """Ranks that an epoch is divided between."""
        return self._ranks

    @property
    def per_rank(self) -> int:
        """Draws of each rank in a whole epoch."""
        return self._layout(0, None).per_rank(len(self._plan))

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one; a loaded position in it is kept."""
        self._passes.set_epoch(epoch)
        if self._stretches_epoch != epoch or self._run is not None:
            self._stretches, self._own_done = (), None
        self._run = None

    def ended_before(self) -> bool:
        """Whether the pass that begins was at its end already when its state was saved."""
        ended, self._ended_before = self._ended_before, False
        return ended

    def begin(self, worker: int, workers: int, together: int | None) -> Run:
        """A worker's part of the next epoch, or of what is left of the one loaded.

        Raises:
            MismatchError: when the state of a worker was loaded into another one.
        """
        epoch = self._passes.begin(worker, workers)
        order = self._order(epoch)
        layout = self._layout(workers, together)
        before = self._stretches if self._stretches_epoch == epoch else ()
        going_on = bool(before) and before[-1].layout == layout
        past, done = (before[:-1], before[-1].done) if going_on else (before, 0)
        if self._own_done is not None and before and (not going_on or self._own_done[0] != worker):
            raise MismatchError(
                "the loaded state is that of one DataLoader worker, of a loader with "
                f"{before[-1].layout.workers} workers on {before[-1].layout.ranks} ranks; use as "
                "many, or save shards.state_dict(position=...) to go on with others"
            )
        positions = self._left(order, past)
        # A loader begins with worker 0, whoever's turn it was.
        turned = (worker + layout.batches(done)) % layout.workers
        share = share_of(positions, layout, self._rank, turned)
        run = Run(order, share, (len(past), self._rank, turned))
        run.done = layout.by_worker(len(positions), done)[turned]
        if self._own_done is not None and before:
            run.done = self._own_done[1]
        run.drawn = run.done
        self._stretches, self._stretches_epoch = (*past, Stretch(layout, done)), epoch
        self._own_done = None
        self._run = run
        return run

    def end(self, run: Run) -> None:
        """A run has given out all that it owed."""
        run.ended = True
        if get_worker_info() is None and self._run is run:
            self._stretches, self._run = (), None

    def state(self, together: int | None, position: int | None) -> dict[str, Any]:
        """Where the epoch is: by what this process gave out, or by a position of all ranks."""
        if position is not None:
            return self._state_at(non_negative(position, "position"), together)
        run, info = self._run, get_worker_info()
        if run is None:
            if info is None and self._passes.workers > 0:
                raise ValueError(
                    "DataLoader workers draw, so this process does not know how far they are: "
                    "give position=, the draws trained on in this epoch over all ranks, or use "
                    "torchdata's StatefulDataLoader"
                )
            known = self._stretches if self._stretches_epoch == self.epoch else ()
            return self._state(self.epoch, known)
        if info is None:
            *past, last = self._stretches
            now = [Stretch(last.layout, run.done)] if run.done else []
            return self._state(run.epoch, [*past, *now])
        own = {_WORKER: info.id, _DONE: run.done, _ENDED: run.ended}
        return self._state(run.epoch, self._stretches) | own

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state at the next pass."""
        epoch, stretches = self._checked(state)
        self._passes.set_seed(state[_SEED])
        self._stretches, self._stretches_epoch, self._run = stretches, epoch, None
        self._own_done = (state[_WORKER], state[_DONE]) if _WORKER in state else None
        info = get_worker_info()
        if info is None:
            self._passes.set_epoch(epoch)
            return
        self._ended_before = bool(state.get(_ENDED))
        if self._ended_before:
            self._stretches, self._own_done = (), None
        self._passes.set_own(info.id, info.num_workers, epoch + self._ended_before)

    def _state_at(self, position: int, together: int | None) -> dict[str, Any]:
        epoch = self._passes.running()
        layout = self._layout(max(self._passes.workers, 0), together)
        known = self._stretches if self._stretches_epoch == epoch else ()
        past = known[:-1] if known and known[-1].layout == layout else known
        if layout.workers > 1 and together is None:
            raise ValueError(
                "the draws of several workers are counted in batches: give FlowShards the "
                "batch_size of the DataLoader"
            )
        before = sum(stretch.layout.ranks * stretch.done for stretch in past)
        here, odd = divmod(position - before, self._ranks)
        left = len(self._left(self._order(epoch), past)) if past else len(self._plan)
        most = layout.per_rank(left)
        between = here >= most or layout.workers == 1 or here % layout.batch == 0
        if here < 0 or (odd and here < most) or not between:
            raise ValueError(
                f"position={position} is not between two batches: it counts draws over all ranks "
                f"(steps x batch size x {self._ranks} ranks), {before} of them before the last "
                "resume"
            )
        if here >= most:
            return self._state(epoch + 1, ())
        return self._state(epoch, (*past, Stretch(layout, here)) if here else past)

    def _order(self, epoch: int) -> StreamOrder:
        plan = self._plan.at_epoch(epoch, seed=self._passes.seed)
        return StreamOrder(plan, self._bounds, window=self._window, shards_open=self.shards_open)

    def _left(self, order: StreamOrder, stretches: Sequence[Stretch]) -> Positions:
        positions: Positions = range(len(self._plan))
        for number, stretch in enumerate(stretches):
            done = stretch.layout.by_worker(len(positions), stretch.done)
            positions = order.left(positions, stretch.layout, done, number)
        return positions

    def _layout(self, workers: int, together: int | None) -> Layout:
        return Layout(self._ranks, max(workers, 1), together or 1, self._drop_last)

    def _options(self) -> dict[str, Any]:
        return {
            _VERSION: _STATE_VERSION,
            "epoch_size": len(self._plan),
            "scheme": self._plan.scheme,
            "alpha": self._plan.alpha,
            "window": self._window,
            "shards_open": self.shards_open,
            "weights": self._plan.weights.fingerprint,
        }

    def _state(self, epoch: int, stretches: Sequence[Stretch]) -> dict[str, Any]:
        done = [asdict(stretch.layout) | {_DONE: stretch.done} for stretch in stretches]
        return self._options() | {_SEED: self._passes.seed, _EPOCH: epoch, _STRETCHES: done}

    def _checked(self, state: dict[str, Any]) -> tuple[int, tuple[Stretch, ...]]:
        if not isinstance(state, dict):
            raise MismatchError(f"not a FlowShards state: {state!r}")
        own = self._options()
        if missing := (own.keys() | {_SEED, _EPOCH, _STRETCHES}) - state.keys():
            raise MismatchError(f"not a FlowShards state: {sorted(missing)} missing")
        for key, value in own.items():
            if state[key] != value:
                raise MismatchError(
                    f"the saved state has {key}={state[key]!r}, this stream has {value!r}; its "
                    "positions mean other samples here. Build it from the same loss table and "
                    "with the same options as the run that was saved"
                )
        non_negative(state[_SEED], _SEED)
        try:
            stretches = tuple(
                Stretch(
                    Layout(**{key: value for key, value in stretch.items() if key != _DONE}),
                    non_negative(stretch[_DONE], _DONE),
                )
                for stretch in state[_STRETCHES]
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise MismatchError(f"not a FlowShards state: {state[_STRETCHES]!r}") from error
        return non_negative(state[_EPOCH], _EPOCH), stretches
