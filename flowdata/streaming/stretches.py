"""Stretches: what is done of an epoch, as a state saves it.

Each time that an epoch is resumed with other ranks or workers, what is left of it is divided
anew. So how far it is cannot be said by one number: it is a list of stretches, the segments of
the epoch that were each run with one division. All but the last are over.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flowdata.core.plan import non_negative
from flowdata.errors import MismatchError
from flowdata.streaming.order import Layout

STRETCHES = "stretches"

_DONE = "done"
_WORKER = "worker"
_ENDED = "ended"
_RANK = "rank"
_DRAWN = "drawn"


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


def write_stretches(stretches: Sequence[Stretch]) -> list[dict[str, Any]]:
    """Stretches, JSON-able."""
    return [asdict(stretch.layout) | {_DONE: stretch.done} for stretch in stretches]


def worker_progress(worker: int, done: int, *, ended: bool) -> dict[str, Any]:
    """What a worker adds to a state: how far itself is."""
    return {_WORKER: worker, _DONE: done, _ENDED: ended}


def dropped_draws(rank: int, drawn: int) -> dict[str, Any]:
    """What is added to a state where draws were dropped: on which rank, and all that it drew."""
    return {_RANK: rank, _DRAWN: drawn}


def read_stretches(state: Mapping[str, Any]) -> tuple[Stretch, ...]:
    """The stretches of a state.

    Raises:
        MismatchError: for anything else.
    """
    try:
        return tuple(
            Stretch(
                Layout(**{key: value for key, value in stretch.items() if key != _DONE}),
                non_negative(stretch[_DONE], _DONE),
            )
            for stretch in state[STRETCHES]
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise MismatchError(f"not a FlowShards state: {state[STRETCHES]!r}") from error


def read_process(state: Mapping[str, Any], stretches: Sequence[Stretch]) -> SavedProcess | None:
    """What a state says of the process that saved it, if it says anything."""
    if _WORKER not in state and _DRAWN not in state:
        return None
    done = state[_DONE] if _WORKER in state else stretches[-1].done if stretches else 0
    drawn = non_negative(state.get(_DRAWN, done), _DRAWN)
    ended = bool(state.get(_ENDED))
    return SavedProcess(state.get(_WORKER), done, state.get(_RANK), drawn, ended)
