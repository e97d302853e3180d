"""Stretches: what is done of an epoch, as a state saves it.

Each time that an epoch is resumed with other ranks or workers, what is left of it is divided
anew. So how far it is cannot be said by one number: it is a list of stretches, the segments of
the epoch that were each run with one division. All but the last are over.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any
from zlib import crc32

import numpy as np

from flowdata.core.states import EPOCH, SEED, shown
from flowdata.errors import MismatchError
from flowdata.streaming.order import Layout, SlotOrder
from flowdata.streaming.shared_epochs import MOST_EPOCHS, MOST_WORKERS
from flowdata.streaming.slots import Slots

STRETCHES = "stretches"
STREAM = "stream"
ORDER = "order"
CURRENT_ORDER = 2
"""That in which the draws of an epoch come; the first was laid out row by row, and had no name."""

_DONE = "done"
_WORKER = "worker"
_ENDED = "ended"
_RANK = "rank"
_DRAWN = "drawn"
_DROP_LAST = "drop_last"
_CHECK = "check"

# More than any run has; a damaged number of them would be gone through one by one.
_MOST_RANKS = 1 << 20
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Stretch:
    """A segment of an epoch, run with one division of what was left of the epoch before it.

    Attributes:
        layout: the division.
        done: samples that each rank has given in this segment.
    """

    layout: Layout
    done: int


@dataclass(frozen=True)
class SavedProcess:
    """How far the process was that saved a state, where the stretches do not say it.

    Attributes:
        worker: its number in a loader; None where the loop itself drew, without workers.
        done: samples that it had given out.
        rank: where it was, if draws had been dropped there; else None: it was as on all ranks.
        drawn: draws that those samples took, with the dropped ones.
        ended: whether its part of the epoch had come to its end.
    """

    worker: int | None
    done: int
    rank: int | None
    drawn: int
    ended: bool


def continue_stretches(
    stretches: tuple[Stretch, ...], layout: Layout
) -> tuple[tuple[Stretch, ...], Stretch]:
    """The stretches that are over, and the one that a run with this layout is in.

    That is the last one if it has the same layout, else a new one, of which nothing is done.
    """
    if stretches and stretches[-1].layout == layout:
        return stretches[:-1], stretches[-1]
    return stretches, Stretch(layout, 0)


def remaining_slots(order: SlotOrder, draws: int, stretches: Sequence[Stretch]) -> Slots:
    """The slots of an epoch of so many draws that are not drawn yet after some stretches.

    Raises:
        MismatchError: for stretches that no such epoch can have had.
    """
    slots = Slots.run(0, draws)
    for number, stretch in enumerate(stretches):
        require_fitting(stretch, len(slots))
        done = stretch.layout.by_worker(len(slots), stretch.done)
        slots = order.remaining(slots, stretch.layout, done, number)
    return slots


def write_stretches(stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
    """Stretches, JSON-able."""
    return [asdict(stretch.layout) | {_DONE: stretch.done} for stretch in stretches]


def worker_progress(worker: int, done: int, *, ended: bool) -> dict[str, Any]:
    """What a worker adds to a state: how far itself is."""
    return {_WORKER: worker, _DONE: done, _ENDED: ended}


def dropped_draws(rank: int, drawn: int) -> dict[str, Any]:
    """What is added to a state where draws were dropped: on which rank, and all that it drew."""
    return {_RANK: rank, _DRAWN: drawn}


def write_process(saved: SavedProcess) -> dict[str, Any]:
    """What `read_process` has read."""
    own = (
        {} if saved.worker is None else worker_progress(saved.worker, saved.done, ended=saved.ended)
    )
    return own | ({} if saved.rank is None else dropped_draws(saved.rank, saved.drawn))


def seal(state: dict[str, Any]) -> dict[str, Any]:
    """The state with a checksum of what says where in which epoch it is."""
    return state | {_CHECK: _checksum(state)}


def require_current_order(state: Any) -> None:
    """Refuse states of before the order of streams changed, in words of their own.

    Raises:
        MismatchError: for one of these.
    """
    if not isinstance(state, Mapping):
        return
    options = state.get(STREAM, state)
    if isinstance(options, Mapping) and "shards_open" in options and ORDER not in options:
        raise MismatchError(
            "the saved FlowShards state is of a flowdata in which the draws of a stream came in "
            "another order, so that what it says is done cannot be told apart from what is left: "
            "finish that epoch with the flowdata that saved it, or begin the next one, "
            "by set_epoch"
        )


def require_storable(state: Mapping[str, Any]) -> int:
    """The epoch of a state, if shared memory can hold it and the seed.

    Raises:
        MismatchError: if it cannot.
    """
    for name, limit, text in ((SEED, 1 << 63, "2^63"), (EPOCH, MOST_EPOCHS, "2^32 - 1")):
        if state[name] >= limit:
            raise _damaged(f"the {name} of a stream must be below {text}, got {shown(state[name])}")
    return int(state[EPOCH])


def require_seal(state: Mapping[str, Any]) -> None:
    """Make sure that a state is as it was saved, if it has a checksum: older ones have none.

    Args:
        state: one whose stretches and process can be read.

    Raises:
        MismatchError: for a state in which a number has changed to another possible one.
    """
    found = state.get(_CHECK)
    if _CHECK in state and not (isinstance(found, str) and found == _checksum(state)):
        raise _damaged(f"its {_CHECK} does not fit the epoch and the progress that it states")


def read_stretches(state: Mapping[str, Any], draws: int) -> tuple[Stretch, ...]:
    """The stretches of a state, if an epoch of so many draws can have been run so.

    Raises:
        MismatchError: for anything else.
    """
    if not isinstance(state[STRETCHES], list):
        raise MismatchError(f"not a FlowShards state: {STRETCHES}={shown(state[STRETCHES])}")
    stretches = tuple(_read_stretch(stretch) for stretch in state[STRETCHES])
    left = draws
    for number, stretch in enumerate(stretches):
        if not stretch.done and number < len(stretches) - 1:
            raise _damaged(f"nothing is done in stretch {number} of {len(stretches)}")
        require_fitting(stretch, left)
        # Of what ranks have drawn, some may be repeats that filled up the last ones.
        ranks, each = stretch.layout.ranks, stretch.layout.per_rank(left)
        left -= max(ranks * stretch.done - max(ranks * each - left, 0), 0)
    return stretches


def require_fitting(stretch: Stretch, left: int) -> None:
    """Make sure that no rank has done more than there was.

    Args:
        stretch: a segment of an epoch.
        left: draws that were left of the epoch when it began, or more.

    Raises:
        MismatchError: if one has.
    """
    if stretch.done > (most := stretch.layout.per_rank(left)):
        raise _damaged(
            f"each of {stretch.layout.ranks:,} ranks has {_DONE}={stretch.done:,}, but the epoch "
            f"had {most:,} draws left for each"
        )


def read_process(state: Mapping[str, Any], stretches: Sequence[Stretch]) -> SavedProcess | None:
    """What a state says of the process that saved it, if it says anything.

    Raises:
        MismatchError: for what no process can have said.
    """
    is_worker, has_dropped = (
        _all_or_none(state, names) for names in ((_WORKER, _DONE, _ENDED), (_RANK, _DRAWN))
    )
    if not (is_worker or has_dropped):
        return None
    if not stretches:
        raise _damaged("its process has made progress, but no stretch has begun")
    layout, done, ended = stretches[-1].layout, stretches[-1].done, False
    worker = rank = None
    if is_worker:
        worker = _count(state, _WORKER, most=layout.workers - 1)
        done = _count(state, _DONE)
        ended = _flag(state, _ENDED)
    drawn = done
    if has_dropped:
        rank = _count(state, _RANK, most=layout.ranks - 1)
        drawn = _count(state, _DRAWN)
        if drawn < done:
            raise _damaged(f"{_DRAWN}={drawn:,} is less than {_DONE}={done:,}")
    return SavedProcess(worker, done, rank, drawn, ended)


def require_possible(saved: SavedProcess, current: Stretch, left: int) -> None:
    """Make sure that the process that saved a state can have been where it says.

    Args:
        saved: of one worker of the stretch, or of the only process of a rank.
        current: the stretch.
        left: draws that were left of the epoch when it began.

    Raises:
        MismatchError: if it cannot.
    """
    layout = current.layout
    begun, whole = 0, layout.per_rank(left)
    if saved.worker is not None:
        on_turn = layout.on_turn(saved.worker, current.done)
        begun = layout.by_worker(left, current.done)[on_turn]
        whole = layout.shares(left)[on_turn]
    if not begun <= saved.done <= whole:
        raise _damaged(
            f"worker {saved.worker} has {_DONE}={saved.done:,}, but had to give {whole:,} samples, "
            f"{begun:,} of them before it began"
        )
    # A pass in which nothing comes through is given up.
    if saved.drawn > 2 * whole * (saved.done + 1):
        raise _damaged(f"{_DRAWN}={saved.drawn:,}, of {whole:,} draws, for {saved.done:,} samples")


def require_saved_worker(
    saved: SavedProcess, layout: Layout, worker: int, *, continues: bool
) -> None:
    """Make sure that a worker's state is loaded into that worker, of a loader with as many.

    Args:
        saved: what the state says of its process.
        layout: that of its last stretch.
        worker: the one that it was loaded into.
        continues: whether this run has the same layout.

    Raises:
        MismatchError: if it is not.
    """
    if saved.worker is not None and not (continues and saved.worker == worker):
        raise MismatchError(
            "the loaded state is that of one DataLoader worker, of a loader with "
            f"{layout.workers} workers on {layout.ranks} ranks; use as many, or save "
            "shards.state_dict(position=...) to go on with others"
        )


def _read_stretch(stretch: Any) -> Stretch:
    names = {field.name for field in fields(Layout)} | {_DONE}
    if not isinstance(stretch, dict) or stretch.keys() != names:
        raise MismatchError(f"not a FlowShards state: {shown(stretch)} is no stretch")
    layout = Layout(
        ranks=_count(stretch, "ranks", least=1, most=_MOST_RANKS),
        workers=_count(stretch, "workers", least=1, most=MOST_WORKERS),
        batch=_count(stretch, "batch", least=1),
        drop_last=_flag(stretch, _DROP_LAST),
    )
    return Stretch(layout, _count(stretch, _DONE))


def _count(found: Mapping[str, Any], name: str, *, least: int = 0, most: int = _LARGEST) -> int:
    value = found[name]
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise _damaged(f"{name} must be an int, got {shown(value)}")
    if not least <= value <= most:
        raise _damaged(f"{name} must be in [{least}, {most}], got {shown(value)}")
    return int(value)


def _flag(found: Mapping[str, Any], name: str) -> bool:
    if not isinstance(found[name], bool):
        raise _damaged(f"{name} must be true or false, got {shown(found[name])}")
    return bool(found[name])


def _all_or_none(found: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    missing = [name for name in names if name not in found]
    if missing and len(missing) < len(names):
        raise _damaged(f"of {', '.join(names)} it has no {', '.join(missing)}")
    return not missing


def _checksum(state: Mapping[str, Any]) -> str:
    names = (SEED, EPOCH, STRETCHES, _WORKER, _DONE, _ENDED, _RANK, _DRAWN)
    # A library may have stored the numbers as those of numpy.
    text = json.dumps(
        [state.get(name) for name in names], sort_keys=True, separators=(",", ":"), default=int
    )
    return f"{crc32(text.encode()):08x}"


def _damaged(what: str) -> MismatchError:
    return MismatchError(f"the saved FlowShards state is damaged: {what}")
