"""Progress: how far an epoch of a stream has come, over all ranks, workers and restarts."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import ArrayLike
from torch.utils.data import get_worker_info

from flowdata.core.lengths import HasLengths
from flowdata.core.plan import non_negative
from flowdata.core.states import PLAN, SEED, read_state, save_state
from flowdata.errors import warn
from flowdata.guards.counts import EpochCount
from flowdata.guards.stream import StreamGuard
from flowdata.streaming.division import Division, SlotPlan
from flowdata.streaming.order import Layout, share_of
from flowdata.streaming.shared_epochs import SharedEpochs
from flowdata.streaming.stretches import (
    STREAM,
    STRETCHES,
    SavedProcess,
    Stretch,
    continue_stretches,
    dropped_draws,
    read_process,
    read_stretches,
    remaining_slots,
    require_current_order,
    require_fitting,
    require_possible,
    require_saved_worker,
    require_seal,
    require_storable,
    seal,
    worker_progress,
    write_process,
    write_stretches,
)
from flowdata.streaming.worker_epoch import WorkerEpoch


class Progress:
    """What a stream's epochs are made of, and where in them it is."""

    def __init__(self, division: Division, *, batch_size: int | None) -> None:
        self._division = division
        self.batch_size = batch_size
        """Draws that are one batch; None if that is not known."""
        self._epochs = SharedEpochs(division.plan.seed)
        self._stretches: tuple[Stretch, ...] = ()
        """Those of the epoch that is to come or running, the last one that of this process."""
        self._stretches_epoch = -1
        self._saved: SavedProcess | None = None
        self._loaded: dict[str, Any] | None = None
        """What was loaded of the process that saved it, until a pass or another epoch begins."""
        self._running: WorkerEpoch | None = None
        self._ended_before = False
        self._guard, self._count = StreamGuard(), EpochCount()
        self._told: int | None = None
        """The epoch that was set, or loaded, last in this process."""
        division.require_fitting(batch_size)

    def following(self, batch_size: int | None, division: Division | None = None) -> "Progress":
        """A progress of its own, that begins where the next pass would; of a division, if given."""
        made = copy.copy(self)
        made.__dict__ |= {
            "_division": division or self._division,
            "_epochs": self._epochs.following(),
            "_guard": copy.copy(self._guard),
            "_count": copy.copy(self._count),
            "_running": None,
        }
        made.batch_size = batch_size
        return made

    def of_packs(
        self, lengths: HasLengths | ArrayLike, max_length: int, **options: Any
    ) -> "Progress":
        """A progress in packs of the same draws, of its own: from the epoch of the next pass on.

        Args:
            lengths, max_length, options: see `ShardPacks`.

        Raises:
            ValueError: where a position in draws was loaded, which means nothing in packs.
        """
        if self._known_stretches(self.epoch):
            raise ValueError(
                "this stream goes on inside an epoch of draws, which are no packs: make packs "
                "first, by .packed(), and load a state of packs into what it returns"
            )
        division = self._division.of_packs(lengths, max_length, **options)
        return self.following(self.batch_size, division)

    @property
    def epoch(self) -> int:
        """The epoch of the next pass."""
        return self._epochs.upcoming()

    @property
    def running_epoch(self) -> int:
        """The epoch of the pass that began last, in whichever process; of none, the next one."""
        return self._epochs.running()

    @property
    def plan(self) -> SlotPlan:
        """The plan of the next epoch, or its packs."""
        return self._plan_of(self.epoch)

    @property
    def has_begun(self) -> bool:
        """Whether a pass has begun since an epoch was set or a state loaded."""
        return self._epochs.workers >= 0

    @property
    def ranks(self) -> int:
        """Ranks that an epoch is divided between."""
        return self._division.ranks

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return self._division.rank

    @property
    def per_rank(self) -> int:
        """Draws or packs of each rank in a whole epoch."""
        return self._division.per_rank()

    def set_epoch(self, epoch: int) -> None:
        """Make an epoch the next one, see `EpochCount`; a loaded position in it is kept."""
        drawn = self._epochs.running() if self.has_begun else None
        if drawn is not None and self._told not in (None, drawn):
            self._count.on_pass_elsewhere(drawn)
        meant = self._count.meant_by(non_negative(epoch, "epoch"))
        if meant is None:
            return
        have_begun = self._guard.on_started_workers(meant, self._epochs.wait_for_workers)
        self._told = epoch = meant
        self._guard.on_set_epoch(epoch, drawn=None if have_begun else drawn)
        if have_begun:
            return
        self._epochs.set_epoch(epoch)
        if self._stretches_epoch != epoch or self._running is not None:
            self._stretches, self._saved, self._loaded = (), None, None
        self._running = None

    def length_is_read(self) -> None:
        """Somebody asks for the length of the stream."""
        self._guard.on_len()

    def ended_before(self) -> bool:
        """Whether the pass that begins was at its end already when its state was saved."""
        ended, self._ended_before = self._ended_before, False
        return ended

    def begin(self, worker: int, workers: int, *, items: int | None) -> WorkerEpoch:
        """A worker's part of the next epoch, or of what is left of the one loaded.

        Args:
            worker, workers: number of this worker, and how many there are; zeros without.
            items: what a loader has to take from a worker at a time, if that matters.

        Raises:
            MismatchError: when the state of a worker was loaded into another one.
            RuntimeError, ValueError: see `StreamGuard.on_begin`.
        """
        self._division.require_fitting(self.batch_size)
        self._guard.on_begin(ranks=self.ranks, items=items)
        epoch = self._epochs.begin()
        self._count.on_first_draw(epoch)
        before = self._known_stretches(epoch)
        over, current = continue_stretches(before, self._layout(workers))
        continues = len(over) < len(before)
        saved = self._saved if before else None
        if saved is not None:
            require_saved_worker(saved, before[-1].layout, worker, continues=continues)
        run = self._divide(epoch, over, current, worker)
        if saved is not None:
            self._restore(run, saved, continues=continues)
        self._stretches, self._stretches_epoch = (*over, current), epoch
        self._saved = self._loaded = None
        self._running = run
        return run

    def _divide(
        self, epoch: int, over: Sequence[Stretch], current: Stretch, worker: int
    ) -> WorkerEpoch:
        """The part of a worker in a stretch, where that stretch is."""
        order, layout = self._division.order(self._plan_of(epoch)), current.layout
        slots = remaining_slots(order, len(self._division.plan), over)
        require_fitting(current, len(slots))
        worker_on_turn = layout.on_turn(worker, current.done)
        share = share_of(slots, layout, self.rank, worker_on_turn)
        random_key = (len(over), self.rank, worker_on_turn)
        run = WorkerEpoch(order, share, random_key, self.ranks)
        run.done = layout.by_worker(len(slots), current.done)[worker_on_turn]
        run.drawn = run.read = run.done
        return run

    def _restore(self, run: WorkerEpoch, saved: SavedProcess, *, continues: bool) -> None:
        """Let a run go on where the process was that saved a state.

        Args:
            run: of a worker that has as many peers, if that process was a worker.
            saved: where it was.
            continues: whether the run has the ranks and workers of the one that was saved.
        """
        if saved.worker is not None:
            run.done = run.drawn = run.read = saved.done
        if saved.rank is None:
            return
        if continues and saved.rank == self.rank:
            run.drawn = run.read = saved.drawn
            return
        warn(
            f"{saved.drawn - saved.done:,} {self._division.slots} had been dropped when rank "
            f"{saved.rank} saved the state that this run goes on from, with other ranks or "
            "workers, or on another rank: every rank gives as many samples as are left, but may "
            "repeat as many draws"
        )

    def count_given(self, run: WorkerEpoch, draws: Iterable[int]) -> None:
        """Count samples that are given out, of each the number of draws read when it was made."""
        for drawn in draws:
            run.done += 1
            run.drawn = drawn
        if run.drawn > run.done:
            self._epochs.set_dropped(run.drawn - run.done)

    def finish(self, run: WorkerEpoch) -> None:
        """Note that a worker has given out all its samples."""
        run.ended = True
        if get_worker_info() is None and self._running is run:
            self._stretches, self._running = (), None

    def save(self, position: int | None) -> dict[str, Any]:
        """Where the epoch is: by what this process gave out, or by a position.

        Args:
            position: draws of the epoch that are done, by all ranks together.

        Raises:
            ValueError: for a position that is not between two batches, or where only the workers
                of a loader know how far they are.
        """
        if position is not None:
            return seal(self._state_at(non_negative(position, "position")))
        return seal(self._state_now())

    def _state_now(self) -> dict[str, Any]:
        run, info = self._drawing(), get_worker_info()
        if run is None:
            if info is None and self._epochs.workers > 0:
                raise ValueError(
                    "DataLoader workers draw, so this process does not know how far they are: "
                    f"give position=, the {self._division.slots} trained on in this epoch over "
                    "all ranks, or use torchdata's StatefulDataLoader"
                )
            if self._loaded is not None:
                return dict(self._loaded)
            return self._state(self.epoch, self._known_stretches(self.epoch))
        if info is None:
            *over, last = self._stretches
            now = [Stretch(last.layout, run.done)] if run.done else []
            return self._state(run.epoch, [*over, *now]) | self._dropped(run)
        own = worker_progress(info.id, run.done, ended=run.ended)
        return self._state(run.epoch, self._stretches) | own | self._dropped(run)

    def _drawing(self) -> WorkerEpoch | None:
        """The run of this process, if it is this one that draws, and not its workers."""
        if get_worker_info() is None and self._epochs.workers > 0:
            return None
        return self._running

    def _dropped(self, run: WorkerEpoch) -> dict[str, Any]:
        return dropped_draws(self.rank, run.drawn) if run.drawn != run.done else {}

    def load(self, state: Any) -> None:
        """Go on from a state, any mapping, at the next pass.

        Raises:
            MismatchError: when it is of other draws, or no state of a stream.
        """
        require_current_order(state)
        found = read_state(state, self._identity(), owner="FlowShards", needed=(STRETCHES,))
        # All is checked before anything is set: a refused state changes nothing.
        epoch = require_storable(found)
        stretches = read_stretches(found, len(self._division.plan))
        saved = read_process(found, stretches)
        require_seal(found)
        if saved is not None:
            plan = self._division.plan.at_epoch(epoch, seed=found[SEED])
            require_possible(saved, stretches[-1], self._division.left(plan, stretches[:-1]))
        self._epochs.set_seed(found[SEED])
        self._saved, self._loaded = saved, None
        if saved is not None:
            self._loaded = self._state(epoch, stretches) | write_process(saved)
        self._stretches, self._stretches_epoch, self._running = stretches, epoch, None
        if get_worker_info() is None:
            self._guard.on_load(epoch)
            self._count.on_load(epoch)
            self._epochs.set_epoch(epoch)
            self._told = epoch
            return
        # torchdata asks a worker that had come to its end to go on all the same: it gives nothing.
        self._ended_before = self._saved is not None and self._saved.ended
        if self._ended_before:
            self._stretches, self._saved = (), None
        self._epochs.set_for_worker(epoch + self._ended_before)

    def _state_at(self, position: int) -> dict[str, Any]:
        epoch = self._epochs.running()
        layout = self._layout(max(self._epochs.workers, 0))
        if layout.workers > 1 and self.batch_size is None:
            raise ValueError(
                "the draws of several workers are counted in batches: give FlowShards the "
                "batch_size of the DataLoader"
            )
        over, _ = continue_stretches(self._known_stretches(epoch), layout)
        done = self._done_at(position, epoch, over, layout)
        if done is None:
            return self._state(epoch + 1, ())
        state = self._state(epoch, (*over, Stretch(layout, done)) if done else over)
        run = self._drawing()
        if run is not None and run.done == done:
            return state | self._dropped(run)
        if dropped := self._epochs.dropped:
            warn(
                f"{dropped:,} {self._division.slots} were dropped in epoch {epoch}, by the handler "
                f"or a stage: a run that goes on from position={position} gives as many samples "
                "as are left, but may repeat as many draws; torchdata's StatefulDataLoader repeats "
                "none"
            )
        return state

    def _done_at(
        self, position: int, epoch: int, over: Sequence[Stretch], layout: Layout
    ) -> int | None:
        """Samples of each rank in the running stretch at a position; None at the epoch's end.

        Raises:
            ValueError: for a position that is not between two batches.
        """
        before = sum(stretch.layout.ranks * stretch.done for stretch in over)
        done, rest = divmod(position - before, self.ranks)
        most = layout.per_rank(self._division.left(self._plan_of(epoch), over))
        if done >= most:
            # The last batch may be incomplete, and counted as a whole one.
            if done >= most + (self.batch_size or most + 1):
                slots = len(self._division.plan)
                raise ValueError(
                    f"position={position:,} is beyond epoch {epoch}, which has {slots:,} "
                    f"{self._division.slots}: it counts those of the running epoch, over all "
                    "ranks, not those of epochs before"
                )
            return None
        # The draws of one worker, or of none, come in one order whatever the batches.
        in_batch = done % layout.batch if layout.workers > 1 else 0
        if done < 0 or rest or in_batch:
            raise ValueError(
                f"position={position} is not between two batches: it counts {self._division.slots} "
                f"over all ranks (steps x batch size x {self.ranks} ranks), {before} of them "
                "before the last resume"
            )
        return done

    def _plan_of(self, epoch: int) -> SlotPlan:
        """The plan of an epoch, with the seed of the state that was loaded last, if one was."""
        return self._division.plan.at_epoch(epoch, seed=self._epochs.seed)

    def _known_stretches(self, epoch: int) -> tuple[Stretch, ...]:
        """The stretches of an epoch, if it is the one that was loaded or is running."""
        return self._stretches if self._stretches_epoch == epoch else ()

    def _layout(self, workers: int) -> Layout:
        return self._division.layout(workers, self.batch_size)

    def _identity(self) -> dict[str, Any]:
        return {PLAN: self._division.plan.identity(), STREAM: self._division.options()}

    def _state(self, epoch: int, stretches: Sequence[Stretch]) -> dict[str, Any]:
        progress = {STREAM: self._division.options(), STRETCHES: write_stretches(stretches)}
        return save_state(self._plan_of(epoch), **progress)
