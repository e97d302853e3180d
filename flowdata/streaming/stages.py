"""Stages of a stream: what webdataset's are, which of them a stream can have, and running them."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import webdataset as wds

from flowdata.errors import warn

# webdataset 1.0, filters.py: a stage is a `FilterFunction` of the function under `f`, which that of
# the stage's name has too; caches and `detshuffle` are PipelineStages, which have `run`.
_CACHES = tuple(
    getattr(wds.filters, name) for name in ("Cached", "LMDBCached") if hasattr(wds.filters, name)
)


def apply_stages(stages: Iterable[Any], items: Iterator[Any]) -> Iterator[Any]:
    """The items that come out of the last of some stages."""
    for stage in stages:
        items = stage.run(items) if isinstance(stage, wds.PipelineStage) else stage(items)
    return items


def is_shuffle(stage: Any) -> bool:
    """Whether a stage brings samples into another order."""
    return _is_made_by(stage, wds.filters.shuffle) or isinstance(stage, wds.filters.detshuffle)


def is_slice(stage: Any) -> bool:
    """Whether a stage gives some of its samples only, by their number."""
    return _is_made_by(stage, wds.filters.slice)


def is_batched(stage: Any) -> bool:
    """Whether a stage makes batches."""
    return _is_made_by(stage, wds.filters.batched)


def is_cache(stage: Any) -> bool:
    """Whether a stage gives the samples of its first pass in every later one; warn if so."""
    if not isinstance(stage, _CACHES):
        return False
    warn(
        f"{type(stage).__name__} is left out: it would give the draws of the first epoch in every "
        "epoch. To read remote shards once, give FlowShards access=flowdata.Access(cache_dir=...)"
    )
    return True


def require_stage(stage: Any) -> Callable[[Iterator[Any]], Iterator[Any]] | wds.PipelineStage:
    """The stage, if it is one: a function of an iterator, or an object with ``run``.

    Raises:
        TypeError: for anything else.
    """
    is_class = inspect.isclass(stage) and issubclass(stage, wds.PipelineStage)
    if is_class or not (callable(getattr(stage, "run", None)) or callable(stage)):
        what = f"the class {stage.__name__}" if is_class else f"a {type(stage).__name__}"
        raise TypeError(
            f"{what} is no stage: give a function that makes an iterator of an iterator, or an "
            "object of a class that inherits webdataset.PipelineStage and has run(source)"
        )
    return stage


def batch_arguments(stage: Any) -> tuple[int, bool]:
    """Size and ``partial`` of webdataset's batched stage."""
    arguments = inspect.signature(stage.f).bind(None, *stage.args, **stage.kw)
    arguments.apply_defaults()
    return int(arguments.arguments["batchsize"]), bool(arguments.arguments["partial"])


def _is_made_by(stage: Any, kind: Any) -> bool:
    return getattr(stage, "f", None) is kind.f
