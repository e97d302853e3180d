"""Saved states of samplers, data sets and streams: one layout, and what is checked on loading.

A state is a JSON-able dict. ``version`` is that of the layout, ``plan`` the identity of the plan
(`EpochPlan.identity`), ``seed`` and ``epoch`` name its epoch; what else there is says how far in
that epoch its owner was. A state is loaded where the plan is the same; the seed is the state's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flowdata.core.plan import EpochPlan, non_negative
from flowdata.errors import MismatchError

VERSION = "version"
PLAN = "plan"
SEED = "seed"
EPOCH = "epoch"

_CURRENT = 2
_PLAN_FIELDS_OF_1 = ("epoch_size", "scheme", "alpha", "weights", "strata")
_STREAM_FIELDS_OF_1 = ("window", "shards_open", "shards")
_ABSENT = "nothing"


def save_state(plan: EpochPlan, **progress: Any) -> dict[str, Any]:
    """The state of a plan's epoch, and how far in it its owner is."""
    begin = {VERSION: _CURRENT, PLAN: plan.identity(), SEED: plan.seed, EPOCH: plan.epoch}
    return begin | progress


def read_state(
    state: Any, identity: Mapping[str, Any], *, owner: str, needed: Collection[str] = ()
) -> dict[str, Any]:
    """A saved state as plain dicts and lists in the layout of today, if it belongs here.

    Args:
        state: any mapping, also one of a configuration library, or of an older layout.
        identity: what has to be equal: the plan's under ``"plan"``, and more.
        owner: name of the class whose state it is, for errors.
        needed: keys that its owner reads beside seed and epoch.

    Raises:
        MismatchError: if it is no saved state of this kind, or belongs to another plan, or was
            written by a newer flowdata.
        ValueError: for a seed or an epoch that is no int >= 0.
    """
    if not isinstance(state, Mapping):
        raise MismatchError(f"not a {owner} state: {state!r}")
    found = _in_current_layout(_plain(state))
    if missing := {VERSION, SEED, EPOCH, *identity, *needed} - found.keys():
        raise MismatchError(f"not a {owner} state: {sorted(missing)} missing")
    if found[VERSION] != _CURRENT or isinstance(found[VERSION], bool | float):
        raise MismatchError(
            f"the saved state has version={found[VERSION]!r}, this flowdata reads up to "
            f"{_CURRENT}: load it with the version of flowdata that saved it"
        )
    require_same(
        identity,
        {name: found[name] for name in identity},
        what=f"the saved {owner} state",
        advice="Its positions mean other rows here: build this from the same loss table and "
        "with the same options as the run that was saved",
    )
    non_negative(found[SEED], SEED)
    non_negative(found[EPOCH], EPOCH)
    return found


def require_same(
    identity: Mapping[str, Any], found: Mapping[str, Any], *, what: str, advice: str
) -> None:
    """Make sure that what was found has the identity that is needed.

    Args:
        identity: what is needed, JSON-able.
        found: what was saved.
        what: where it was found, for the error.
        advice: a sentence that says what to do.

    Raises:
        MismatchError: with every difference.
    """
    if differences := list(_differences(identity, found)):
        raise MismatchError(f"{what} does not belong here: {'; '.join(differences)}. {advice}")


def _differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    for name in {**here, **there}:
        own, other = here.get(name, _ABSENT), there.get(name, _ABSENT)
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from _differences(own, other)
        elif own != other:
            yield f"it has {name}={other!r}, here it is {own!r}"


def _in_current_layout(state: dict[str, Any]) -> dict[str, Any]:
    """A state of an older layout in that of today; any other as it is."""
    plan = state.get(PLAN)
    if VERSION not in state and isinstance(plan, dict) and SEED in plan:
        # That of a FlowDataset, which had no version, and the seed in the plan's identity.
        plan = {"strata": ""} | plan
        return {VERSION: _CURRENT, SEED: plan.pop(SEED)} | state | {PLAN: plan}
    if state.get(VERSION) == 1 and type(state[VERSION]) is int:
        # Plans had no strata at first.
        state = {"strata": ""} | state | {VERSION: _CURRENT}
        state[PLAN] = _taken_out(state, _PLAN_FIELDS_OF_1)
        if stream := _taken_out(state, _STREAM_FIELDS_OF_1):
            state["stream"] = stream
    return state


def _taken_out(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: state.pop(name) for name in names if name in state}


def _plain(value: Any) -> Any:
    """Mappings and sequences of any library as dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    return value
