"""The plan that a saved state is of, made anew from the weights of its run."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flowdata.core.arrangement import Arrangement
from flowdata.core.by_length import ByLength
from flowdata.core.cursor import POSITION
from flowdata.core.lengths import HasLengths
from flowdata.core.pack_plan import PackPlan
from flowdata.core.plan import EpochPlan
from flowdata.core.states import EPOCH, PLAN, SEED, read_state, saved_identity
from flowdata.core.weights import FlowWeights
from flowdata.errors import MismatchError

_OWNER = "sampler"
_OF_STREAMS = ("stream", "shards")


class SavedPlan(NamedTuple):
    """The plan of a state's epoch, and the draws, or packs, that were done in it, if it says so."""

    plan: EpochPlan | PackPlan
    position: int | None


def saved_plan(
    state: Any,
    weights: FlowWeights,
    lengths: HasLengths | None = None,
    arrange: Sequence[Arrangement] = (),
) -> SavedPlan:
    """The plan of the epoch that a state was saved in.

    Args:
        state: of a sampler or a data set: what their ``state_dict`` gives.
        weights: those of the run.
        lengths: of the rows, where they were packed.
        arrange: that of the run, or several of which it may be: a state has a hash of it.

    Raises:
        MismatchError: for what is no such state, for other weights, and for another arrangement.
    """
    found = saved_identity(state, owner=_OWNER)
    if set(_OF_STREAMS) & state.keys():
        raise MismatchError(
            "the state is of a stream, whose order depends on its shards and workers too: that of "
            "a sampler or a FlowDataset says which rows a step had"
        )
    packs = found.get("packs")
    try:
        plan: Any = EpochPlan(
            weights,
            epoch_size=found["epoch_size"],
            scheme=found["scheme"],
            alpha=found["alpha"],
            arrange=_arrangement_of(found, arrange),
        )
        if packs is not None:
            options = {name: packs[name] for name in ("max_length", "batch_size", "too_long")}
            plan = PackPlan(plan, _required(lengths), **options)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MismatchError):
            raise
        raise MismatchError(f"not a {_OWNER} state, or damaged: {error!r}") from error
    whole = read_state(state, {PLAN: plan.identity()}, owner=_OWNER)
    position = whole.get(POSITION)
    return SavedPlan(
        plan.at_epoch(whole[EPOCH], seed=whole[SEED]),
        position if isinstance(position, int) else None,
    )


def _arrangement_of(identity: Any, arrange: Sequence[Arrangement]) -> Arrangement | None:
    by_length, strata = identity.get("by_length"), identity.get("strata")
    if not by_length and not strata:
        if arrange:
            raise MismatchError(
                "the state is of a plan without strata, and not by length: leave arrange out"
            )
        return None
    what = "by length" if by_length else "by strata"
    for each in arrange:
        if each.fingerprint == (by_length if isinstance(each, ByLength) else strata):
            return each
    raise MismatchError(
        f"the state is of a plan that is arranged {what}: give arrange="
        + ("" if not arrange else ", with the rows' groups or lengths, and the sizes, of the run")
    )


def _required(lengths: HasLengths | None) -> HasLengths:
    if lengths is None:
        raise MismatchError(
            "the state is of packs, and the loss table has no lengths: give it those that the run "
            "had, by flowdata lengths --table"
        )
    return lengths
