"""score_on_ray: a pass whose rows are scored by workers of a Ray cluster."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

from torch import nn

from flowdata.core.weights import OnInvalid
from flowdata.scoring.engines.ray_workers import RayWorkers, open_dataset
from flowdata.scoring.engines.worker import EngineOptions
from flowdata.scoring.language.named_losses import LanguageLoss
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.models.inference import count_rows
from flowdata.scoring.models.loss_formulas import IGNORED
from flowdata.scoring.models.reliability import warn_if_unreliable
from flowdata.scoring.parts.folder import Parts, find_unscored_rows
from flowdata.scoring.passes.known_rows import known_rows
from flowdata.scoring.passes.ranks import Ranks
from flowdata.scoring.passes.scoring_pass import run_pass
from flowdata.scoring.passes.streamed import is_stream
from flowdata.scoring.scorer import keys_of_rows
from flowdata.table.content import content_hash
from flowdata.table.loss_table import LossTable


def score_on_ray(
    make_model: Callable[[], nn.Module],
    dataset: Any,
    loss: str | LossFunction | LanguageLoss = "classification",
    *,
    workers: int,
    num_cpus: float = 1,
    num_gpus: float | None = None,
    output: str | PathLike[str] | None = None,
    key: str | None = None,
    known: LossTable | str | PathLike[str] | None = None,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    on_invalid: OnInvalid = "raise",
    ignore_index: int = IGNORED,
    adapters: bool = False,
    model_name: str | None = None,
    save_every: float = 30.0,
    progress: bool = True,
) -> LossTable:
    """`score`, with the rows scored by workers of a Ray cluster.

    The table is that of `score`, bit for bit on processors of one kind: rows go to workers in the
    batches in which `score` reads them. A worker that dies is started again, and its rows are
    scored again; what takes long at the end is given to a second worker too. With ``output`` what
    was scored is kept beside it, by this process alone, and the same call goes on.

    Args:
        make_model: a function without arguments that makes the model, in each worker.
        dataset: map-style data set, which each worker gets a copy of, or a function without
            arguments that opens it, where each worker opens it itself: data in files that all
            machines see.
        loss: as for `score`.
        workers: how many; one begins as soon as the cluster has room for it.
        num_cpus, num_gpus: what Ray reserves for each; by default one GPU, if the cluster has any.
        output, key, known, batch_size, collate_fn, on_invalid, ignore_index, adapters, model_name,
        save_every, progress: as for `score`.

    Raises:
        FlowDataError: when workers die again and again.
        ImportError: where Ray is not installed.
        InvalidLossError, MismatchError, TableFileError, TypeError, ValueError: as `score`.
    """
    if on_invalid not in ("raise", "drop"):
        raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    options = EngineOptions(
        *(make_model, loss, batch_size, collate_fn),
        ignore_index=ignore_index,
        adapters=adapters,
        model_name=model_name,
        key=key,
    )
    parts = None if output is None else Parts(output)
    data = open_dataset(dataset)
    if is_stream(data):
        raise ValueError(
            f"workers read rows by number, and a {type(data).__name__} has none: give a map-style "
            "data set, score the stream by score(..., key=), or in a pipeline by BatchScorer"
        )
    rows = count_rows(data)
    keys = None if key is None else keys_of_rows(data, key)
    with _ray() as ray, Ranks() as ranks:
        if ranks.size > 1:
            raise ValueError("score_on_ray is called by one process: leave torch.distributed out")
        gpus = float("GPU" in ray.cluster_resources()) if num_gpus is None else num_gpus
        reserved = {"num_cpus": num_cpus, "num_gpus": gpus}
        pool = RayWorkers(ray, min(workers, rows), reserved, [options, dataset])
        try:
            provenance, sizes = pool.begin()
            # Once, and not by each worker.
            if provenance.data_fingerprint is not None:
                provenance = replace(provenance, content=content_hash(data))
            found = None if known is None else known_rows(known, data, provenance, keys)
            unknown = find_unscored_rows(rows, (), None if found is None else found.scores.rows)
            identity = provenance.identity()
            table = run_pass(
                partial(pool.score, rows=unknown, sizes=sizes, identity=identity),
                data,
                provenance,
                ranks,
                parts=parts,
                num_workers=0,
                on_invalid=on_invalid,
                save_every=save_every,
                progress=progress,
                keys=keys,
                known=found,
            )
        finally:
            pool.end()
    warn_if_unreliable(table, data)
    return table


@contextlib.contextmanager
def _ray() -> Iterator[Any]:
    """Ray, connected to a cluster, which is begun on this machine if there is none."""
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is not installed: pip install 'flowdata[ray]'") from error
    begun = not ray.is_initialized()
    if begun:
        # The cluster of RAY_ADDRESS, or one that runs here.
        ray.init()
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()
