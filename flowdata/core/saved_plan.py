"""The plan that a saved state is of, made anew from the weights of its run."""

from typing import Any, NamedTuple

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


def saved_plan(state: Any, weights: FlowWeights, lengths: HasLengths | None = None) -> SavedPlan:
    """The plan of the epoch that a state was saved in.

    Args:
        state: of a sampler or a data set: what their ``state_dict`` gives.
        weights: those of the run.
        lengths: of the rows, where they were packed.

    Raises:
        MismatchError: for what is no such state, for other weights, and for a plan with strata or
            batches by length, of which a state has no more than a hash.
    """
    found = saved_identity(state, owner=_OWNER)
    if set(_OF_STREAMS) & state.keys():
        raise MismatchError(
            "the state is of a stream, whose order depends on its shards and workers too: that of "
            "a sampler or a FlowDataset says which rows a step had"
        )
    if found.get("strata") or found.get("by_length"):
        raise MismatchError(
            "the state is of a plan that is arranged, by strata or by length: make the same "
            "sampler, let it load the state, and ask sampler.plan.rows_of_step(step, batch_size)"
        )
    packs = found.get("packs")
    try:
        plan: Any = EpochPlan(
            weights,
            epoch_size=found["epoch_size"],
            scheme=found["scheme"],
            alpha=found["alpha"],
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


def _required(lengths: HasLengths | None) -> HasLengths:
    if lengths is None:
        raise MismatchError(
            "the state is of packs, and the loss table has no lengths: give it those that the run "
            "had, by flowdata lengths --table"
        )
    return lengths
