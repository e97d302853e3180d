"""score_proxy: a small model scores all rows, the large one a sample to compare with."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from flowdata.core.agreement import Agreement, agreement, stratified_rows
from flowdata.scoring.language.causal_lm import CausalLM
from flowdata.scoring.models.classification import LossFunction
from flowdata.scoring.passes.ranks import RANK_TIMEOUT, Ranks
from flowdata.scoring.passes.streamed import is_stream
from flowdata.scoring.row_lengths import count_lengths
from flowdata.scoring.scorer import score
from flowdata.table.loss_table import LossTable

Model: TypeAlias = nn.Module | Callable[[], nn.Module]
Loss: TypeAlias = str | LossFunction | CausalLM


@dataclass(frozen=True)
class ProxyScores:
    """What `score_proxy` found; ``print`` shows how far the models agree.

    Attributes:
        table: losses of all rows by the small model, which it names; lengths are in tokens of the
            large one.
        rows: the sample, row numbers in ascending order, shape (m,).
        sample: losses of these by the large model, in this order.
        agreement: how far weights by the one are from weights by the other.
    """

    table: LossTable
    rows: NDArray[np.int64]
    sample: LossTable
    agreement: Agreement

    def __str__(self) -> str:
        return str(self.agreement)


def score_proxy(
    model: Model,
    dataset: Any,
    loss: Loss = "classification",
    *,
    proxy: Model,
    proxy_loss: Loss | None = None,
    sample: int = 512,
    seed: int = 0,
    output: str | PathLike[str] | None = None,
    model_name: str | None = None,
    proxy_name: str | None = None,
    **options: Any,
) -> ProxyScores:
    """Score all rows with a small model, some with the large one, and compare.

    Whether the small model's losses will do is for you to see: `Agreement` says what share of the
    draws would go to other rows. If they will not, go on with ``score(model, ...)``.

    Args:
        model: the pre-trained model that is to be fine-tuned, or a function that loads it, which
            is called when the small one is done.
        dataset, loss: as for `score`; rows by number.
        proxy: the small model, or a function that loads it.
        proxy_loss: where it differs, as by the tokenizer of a `CausalLM`.
        sample: rows that the large model scores, as many from each sixteenth of the small one's
            losses.
        seed: of the sample and of the intervals.
        output: where the table is saved; the losses of the sample are saved beside it, as
            ``.sample.parquet``. A pass that was stopped goes on.
        model_name, proxy_name: kept as provenance.
        options: any other of `score`; key and known are for the table alone.

    Raises:
        ValueError: for a stream, a sample of fewer than 2 rows, or losses of tokens that the large
            model does not have.
    """
    other_tokens = _have_other_tokens(loss, proxy_loss)
    # Not after the small model has scored all rows.
    if sample < 2:
        raise ValueError(f"a sample has at least 2 rows, got sample={sample}")
    if options.get("shard") is not None:
        raise ValueError(
            "a sample is drawn from all rows, of which shard= scores some: score with the small "
            "model alone by jobs, merge, and give the table here as known="
        )
    if is_stream(dataset):
        raise ValueError("a sample is drawn from rows by number, and this is a stream")
    small = _loaded(proxy)
    name = model_name or (type(model).__name__ if isinstance(model, nn.Module) else "a model")
    table = score(
        small,
        dataset,
        loss if proxy_loss is None else proxy_loss,
        output=output,
        model_name=f"{proxy_name or type(small).__name__} in place of {name}",
        **options,
    )
    # So that a model loaded by a function makes room for the other.
    del small
    if other_tokens and isinstance(loss, CausalLM):
        table = table.with_lengths(count_lengths(dataset, loss, progress=False))
        if output is not None:
            with Ranks(options.get("rank_timeout", RANK_TIMEOUT)) as ranks:
                ranks.run_on_first(partial(table.save, output))
    rows = stratified_rows(table.losses, sample, seed=seed)
    alone = {key: value for key, value in options.items() if key not in ("key", "known")}
    of_sample = score(
        _loaded(model),
        _select(dataset, rows),
        loss,
        output=None if output is None else _beside(output),
        model_name=model_name,
        **alone,
    )
    return ProxyScores(
        table, rows, of_sample, agreement(table.losses, rows, of_sample.losses, seed=seed)
    )


def _have_other_tokens(loss: Loss, proxy_loss: Loss | None) -> bool:
    """Whether the small model has tokens of its own."""
    if not (isinstance(loss, CausalLM) and isinstance(proxy_loss, CausalLM)):
        return False
    own, other = (each.identity().get("tokenizer") for each in (loss, proxy_loss))
    if own != other and proxy_loss.token_losses:
        raise ValueError(
            "token_losses are of the small model's tokens, and the large one has others: score "
            "them with a small model of the same tokenizer, or leave token_losses out"
        )
    return bool(own != other)


def _loaded(model: Model) -> nn.Module:
    return model if isinstance(model, nn.Module) else model()


def _select(dataset: Any, rows: NDArray[np.int64]) -> Any:
    """These rows as a data set."""
    # datasets 5.2: a selection keeps the format, the columns and the transform.
    select = getattr(dataset, "select", None)
    return select(rows) if callable(select) else Subset(dataset, rows.tolist())


def _beside(output: str | PathLike[str]) -> str:
    root, suffix = os.path.splitext(str(output))
    return f"{root}.sample{suffix}"
