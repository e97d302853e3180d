"""Progress: how far an epoch of a stream has come, over all ranks, workers and restarts."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from flowdata.core.plan import EpochPlan, non_negative
from flowdata.errors import MismatchError, warn
from flowdata.guards.asking import asker
from flowdata.guards.checks import named_by_loop
from flowdata.streaming.order import Layout, Positions, StreamOrder, Window, share_of
from flowdata.streaming.passes import Passes

_VERSION = "version"
_SEED = "seed"
_EPOCH = "epoch"
_STRETCHES = "stretches"
_WORKER = "worker"
_DONE = "done"
_RANK = "rank"
_DRAWN = "drawn"
_ENDED = "ended"
_STATE_VERSION = 1


@dataclass(frozen=True)
class Stretch:
    """A part of an epoch run with one layout, after which each rank had given so many samples."""

    layout: Layout
    done: int


@dataclass(frozen=True)
class Own:
    """How far the one process was that saved a state.

    Attributes:
        worker: its number in a loader; None where the loop itself drew, without workers.
        done: samples that it had given out.
        rank: where it was, if draws had been dropped there; else None: it was as on all ranks.
        drawn: draws that those samples took, with the dropped ones.
    """

    worker: int | None
    done: int
    rank: int | None
    drawn: int


class Run:
    """One worker's part of one epoch.

    Attributes:
        epoch: its number.
        owed: draws of this worker, with those done before a resume, and samples it gives.
        done: samples that were given out.
        drawn: draws that those took; more than ``done`` where some were dropped.
        read: draws that were read, ahead of those given out.
        ended: whether it gave out all.
    """

    def __init__(self, order: StreamOrder, positions: Positions, part: Sequence[int]) -> None:
        self._order, self._positions, self._part = order, positions, part
        self.epoch = order.epoch
        self.owed = len(positions)
        self.done = self.drawn = self.read = 0
        self.ended = False

    def windows(self) -> Iterator[tuple[Window, int]]:
        """The windows from the next draw on; after the last draw, the first comes once more."""
        return self._order.windows(self._positions, self._part, self.read % self.owed)


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
        self._division = hashlib.sha256(bounds.astype("<i8").tobytes()).hexdigest()[:32]
        self._ranks, self._rank, self._drop_last = ranks, rank, drop_last
        self._window, self.shards_open = window, shards_open
        self._passes = Passes(plan.seed)
        self._stretches: tuple[Stretch, ...] = ()
        """Those of the epoch that is to come or running, the last one that of this process."""
        self._stretches_epoch = -1
        self._own: Own | None = None
        self._run: Run | None = None
        self._ended_before = False
        self._told = self._warned = False
        self._named: int | None = None
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
    def rank(self) -> int:
        """Which of them this is."""
        return self._rank

    @property
    def per_rank(self) -> int:
        """Draws of each rank in a whole epoch."""
        return self._layout(0, None).per_rank(len(self._plan))

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one; a loaded position in it is kept."""
        # Before the first naming, workers may have begun only because accelerate prepares them.
        begun = self._passes.running() if self._told and self._passes.workers >= 0 else None
        self._named, self._told = named_by_loop(epoch, self._named, begun), True
        self._passes.set_epoch(epoch)
        if self._stretches_epoch != epoch or self._run is not None:
            self._stretches, self._own = (), None
        self._run = None

    def check_resuming(self) -> None:
        """Warn where Lightning resumes, and nobody tells the stream from where."""
        if self._warned or not asker().resumes:
            return
        self._warned = True
        warn(
            "Lightning resumes from a checkpoint without saying where in which epoch FlowShards is "
            "to go on: add flowdata.frameworks.lightning.FlowCallback to the Trainer's callbacks, "
            "from the first run on"
        )

    def ended_before(self) -> bool:
        """Whether the pass that begins was at its end already when its state was saved."""
        ended, self._ended_before = self._ended_before, False
        return ended

    def begin(self, worker: int, workers: int, together: int | None) -> Run:
        """A worker's part of the next epoch, or of what is left of the one loaded.

        Raises:
            MismatchError: when the state of a worker was loaded into another one.
        """
        epoch = self._passes.begin()
        order = self._order(epoch)
        layout = self._layout(workers, together)
        before = self._stretches if self._stretches_epoch == epoch else ()
        going_on = bool(before) and before[-1].layout == layout
        past, done = (before[:-1], before[-1].done) if going_on else (before, 0)
        own = self._own if before else None
        if own and own.worker is not None and not (going_on and own.worker == worker):
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
        if own and own.worker is not None:
            run.done = own.done
        run.drawn = run.read = self._drawn_before(run.done, own, going_on)
        self._stretches, self._stretches_epoch = (*past, Stretch(layout, done)), epoch
        self._own = None
        self._run = run
        return run

    def _drawn_before(self, done: int, own: Own | None, going_on: bool) -> int:
        """Draws that the samples took which were given out before a resume."""
        if own is None or own.rank is None:
            return done
        if going_on and own.rank == self._rank:
            return own.drawn
        warn(
            f"{own.drawn - own.done:,} draws had been dropped when rank {own.rank} saved the state "
            "that this run goes on from, with other ranks or workers, or on another rank: every "
            "rank gives as many samples as are left, but may repeat as many draws"
        )
        return done

    def given(self, run: Run, draws: Iterable[int]) -> None:
        """Count samples that are given out, of each the number of draws read when it was made."""
        for drawn in draws:
            run.done += 1
            run.drawn = drawn
        if run.drawn > run.done:
            self._passes.set_dropped(run.drawn - run.done)

    def end(self, run: Run) -> None:
        """A run has given out all that it owed."""
        run.ended = True
        if get_worker_info() is None and self._run is run:
            self._stretches, self._run = (), None

    def state(self, together: int | None, position: int | None) -> dict[str, Any]:
        """Where the epoch is: by what this process gave out, or by a position of all ranks."""
        if position is not None:
            return self._state_at(non_negative(position, "position"), together)
        run, info = self._drawing(), get_worker_info()
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
            return self._state(run.epoch, [*past, *now]) | self._dropping(run)
        own = {_WORKER: info.id, _DONE: run.done, _ENDED: run.ended}
        return self._state(run.epoch, self._stretches) | own | self._dropping(run)

    def _drawing(self) -> Run | None:
        """The run of this process, if it is this one that draws, and not its workers."""
        if get_worker_info() is None and self._passes.workers > 0:
            return None
        return self._run

    def _dropping(self, run: Run) -> dict[str, Any]:
        return {_RANK: self._rank, _DRAWN: run.drawn} if run.drawn != run.done else {}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state at the next pass."""
        epoch, stretches = self._checked(state)
        self._passes.set_seed(state[_SEED])
        self._stretches, self._stretches_epoch, self._run = stretches, epoch, None
        self._own = _own(state, stretches)
        info = get_worker_info()
        if info is None:
            self._named = epoch
            self._passes.set_epoch(epoch)
            return
        self._ended_before = bool(state.get(_ENDED))
        if self._ended_before:
            self._stretches, self._own = (), None
        self._passes.set_own(epoch + self._ended_before)

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
        state = self._state(epoch, (*past, Stretch(layout, here)) if here else past)
        run = self._drawing()
        if run is not None and run.done == here:
            return state | self._dropping(run)
        if dropped := self._passes.dropped:
            warn(
                f"{dropped:,} draws were dropped in epoch {epoch}, by the handler or a stage: a "
                f"run that goes on from position={position} gives as many samples as are left, "
                "but may repeat as many draws; torchdata's StatefulDataLoader repeats none"
            )
        return state

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
            "shards": self._division,
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


def _own(state: dict[str, Any], stretches: Sequence[Stretch]) -> Own | None:
    """How far the process was that saved the state, if that is not said by the stretches."""
    if _WORKER not in state and _DRAWN not in state:
        return None
    done = state[_DONE] if _WORKER in state else stretches[-1].done if stretches else 0
    drawn = non_negative(state.get(_DRAWN, done), _DRAWN)
    return Own(state.get(_WORKER), done, state.get(_RANK), drawn)
