"""Saved states of samplers, data sets and streams: one layout, and what is checked on loading.

A state is a JSON-able dict. ``version`` is that of the layout, ``plan`` the identity of the plan
(`Plan.identity`), ``seed`` and ``epoch`` name its epoch; what else there is says how far in
that epoch its owner was. A state is loaded where the plan is the same; the seed is the state's.
"""

import contextlib
import reprlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from flowdata.errors import MismatchError

VERSION = "version"
PLAN = "plan"
SEED = "seed"
EPOCH = "epoch"

_CURRENT = 2
_PLAN_FIELDS_OF_1 = ("epoch_size", "scheme", "alpha", "weights", "strata")
_STREAM_FIELDS_OF_1 = ("window", "shards_open", "shards")
_ABSENT = "nothing"
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_SHORT.maxdict = 12


class EpochOfPlan(Protocol):
    """What a state says of an epoch: all that decides what is drawn in it."""

    @property
    def epoch(self) -> int:
        """Its number."""

    @property
    def seed(self) -> int:
        """The seed of all epochs."""

    def identity(self) -> dict[str, Any]:
        """What else decides it, JSON-able."""


def save_state(plan: EpochOfPlan, **progress: Any) -> dict[str, Any]:
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
            written by a newer flowdata, or has a seed or an epoch that is no int >= 0.
    """
    found = _laid_out(state, owner)
    if missing := {VERSION, SEED, EPOCH, *identity, *needed} - found.keys():
        raise MismatchError(f"not a {owner} state: {sorted(missing)} missing")
    if type(found[VERSION]) is not int or found[VERSION] != _CURRENT:
        raise MismatchError(
            f"the saved state has version={shown(found[VERSION])}, this flowdata reads up to "
            f"{_CURRENT}: load it with the version of flowdata that saved it"
        )
    require_same(
        identity,
        {name: found[name] for name in identity},
        what=f"the saved {owner} state",
        advice="Its positions mean other rows here: build this from the same loss table and "
        "with the same options as the run that was saved",
    )
    return found | {name: saved_count(found[name], name, owner=owner) for name in (SEED, EPOCH)}


def saved_identity(state: Any, *, owner: str) -> dict[str, Any]:
    """The identity of the plan that a state is of, as it was saved: nothing in it is checked.

    Raises:
        MismatchError: for what is no state.
    """
    plan = _laid_out(state, owner).get(PLAN)
    if not isinstance(plan, dict):
        raise MismatchError(f"not a {owner} state: it has no plan, but {shown(state)}")
    return plan


def _laid_out(state: Any, owner: str) -> dict[str, Any]:
    """A state as plain dicts and lists in the layout of today."""
    if not isinstance(state, Mapping):
        raise MismatchError(f"not a {owner} state: {shown(state)}")
    try:
        return _in_current_layout(_plain(state))
    except RecursionError:
        raise MismatchError(f"not a {owner} state: it is nested too deeply") from None


def saved_count(value: Any, name: str, *, owner: str, most: int | None = None) -> int:
    """A number of a state.

    Raises:
        MismatchError: if it is no int >= 0, or more than there can be.
    """
    damaged = f"the saved {owner} state is damaged: {name} must be an int"
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
        raise MismatchError(f"{damaged} >= 0, got {shown(value)}")
    if most is not None and value > most:
        raise MismatchError(f"{damaged} in [0, {most}], got {shown(value)}")
    return int(value)


def shown(value: Any) -> str:
    """A value of a state in an error, shortened: a damaged one may be of any size."""
    try:
        return _SHORT.repr(value)
    except ValueError:
        return f"{type(value).__name__} of too many digits"


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
        elif not _are_equal(own, other):
            yield f"it has {name}={shown(other)}, here it is {shown(own)}"


def _are_equal(own: Any, other: Any) -> bool:
    # Arrays are compared item by item, and anything may be in a damaged state.
    with contextlib.suppress(Exception):
        return bool(own == other)
    return False


def _in_current_layout(state: dict[str, Any]) -> dict[str, Any]:
    """A state of an older layout in that of today; any other as it is."""
    plan = state.get(PLAN)
    if VERSION not in state and isinstance(plan, dict) and SEED in plan:
        # That of a FlowDataset, which had no version, and the seed in the plan's identity.
        plan = {"strata": ""} | plan
        return {VERSION: _CURRENT, SEED: plan.pop(SEED)} | state | {PLAN: plan}
    if type(state.get(VERSION)) is int and state[VERSION] == 1:
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
