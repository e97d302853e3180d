"""score: one pass of the pre-trained model over the data set."""

import json
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from os import PathLike
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from flowdata.core.weights import OnInvalid
from flowdata.scoring.language.head import vocabulary_of
from flowdata.scoring.language.model_inputs import accepted_names
from flowdata.scoring.language.named_losses import (
    LANGUAGE_LOSSES,
    LanguageLoss,
    language_loss,
    language_pass,
)
from flowdata.scoring.language.padded_pass import pad_of
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.language.text_rows import CollateText, TextPass
from flowdata.scoring.models.batch_dependence import require_lasting_attention, rotary_limit
from flowdata.scoring.models.classification import (
    LOSS_FUNCTIONS,
    FunctionPass,
    LossFunction,
    loss_function,
)
from flowdata.scoring.models.fitted_rows import warn_if_fitted_on
from flowdata.scoring.models.inference import (
    count_rows,
    device_of,
    evaluating,
    read_batches,
    unwrap_model,
    without_adapters,
)
from flowdata.scoring.models.loss_formulas import IGNORED
from flowdata.scoring.models.model_loss import ModelLossPass
from flowdata.scoring.models.pretrained import warn_if_parameters_are_new
from flowdata.scoring.models.reliability import warn_if_unreliable
from flowdata.scoring.models.row_batches import collate_by_shape
from flowdata.scoring.parts.array_jobs import job_of
from flowdata.scoring.parts.folder import Parts
from flowdata.scoring.passes.known_rows import known_rows
from flowdata.scoring.passes.ranks import RANK_TIMEOUT, Ranks
from flowdata.scoring.passes.scoring_pass import ScoringPass, run_pass
from flowdata.scoring.passes.streamed import StreamPass, is_stream, score_stream
from flowdata.table.data_columns import keys_of
from flowdata.table.fingerprint import code_fingerprint
from flowdata.table.loss_table import LossTable
from flowdata.table.provenance import Provenance
from flowdata.table.row_keys import RowKeys
from flowdata.tar.rows import ShardRows


def score(
    model: nn.Module,
    dataset: Any,
    loss: str | LossFunction | LanguageLoss = "classification",
    *,
    output: str | PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    key: str | None = None,
    known: LossTable | str | PathLike[str] | None = None,
    batch_size: int = 64,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    on_invalid: OnInvalid = "raise",
    ignore_index: int = IGNORED,
    adapters: bool = False,
    model_name: str | None = None,
    save_every: float = 30.0,
    rank_timeout: float = RANK_TIMEOUT,
    progress: bool = True,
) -> LossTable:
    """The loss of every sample under the model as it is: FLOW's f_i(theta*), in one pass.

    The model runs in evaluation mode, without gradients, and gets its modes back. Give the data set
    without training augmentation: a loss under a random crop makes the weight random.
    A task-specific head that is new gives meaningless losses: `score_probe` fits and scores it.

    With ``output`` nothing is lost: what was scored is kept in a folder beside it, and the same
    call goes on after a crash or a kill. Where torch.distributed is initialised each rank scores
    its own part, no sample twice; all ranks get the whole table, and any number of ranks can
    finish what others began.

    Args:
        model: the pre-trained model, on the device where it shall run.
        dataset: map-style data set of n samples; with ``key``, also a stream of dicts, as a
            ``datasets.IterableDataset``: each rank then reads what its own stream has.
        loss: "classification" (the model's own, or by the type of the target), "cross_entropy",
            "bce", "mse", "causal_lm", "seq2seq", "token_labels" or a `CausalLM`, `Seq2Seq` or
            `TokenLabels` with options, "model" (whatever loss the model itself computes, one row
            at a time), or a function (model, batch) -> losses of shape (batch size,).
        output: where the table is saved, a file or a URL that fsspec opens; on several ranks one
            that all of them see.
        shard: (i, n), for job i of an array of n jobs, counted from 0: it scores its own share of
            the rows, and leaves them in the folder ``<output>.parts``, with the other jobs or each
            with an output of its own. `LossTable.merge` makes the table of all.
        key: column of whole numbers or texts, none of them twice, by which the table shall know
            its rows, see `LossTable.rows_of`.
        known: a table of some of these rows, or its path, by the same model and loss: they are not
            scored again. Rows are found by key, where both have keys, or are the first ones, of
            data that grew; what the table knows its data by is checked as far as it goes.
        batch_size: samples per forward pass; a language model goes by tokens, see `CausalLM`.
        collate_fn: makes a batch of samples; default torch's.
        num_workers: DataLoader workers.
        device: where batches go; default the device of the model's parameters.
        on_invalid: "raise" stops at the first NaN, infinite or negative loss; "drop" keeps it in
            the table as NaN, to be given weight 0 by ``table.weights(on_invalid="drop")``.
        ignore_index: class index that cross-entropy leaves out; a row that has no other has no
            valid loss.
        adapters: score a PEFT model with its adapters on; by default it is the base model, the
            pre-trained one, that is scored.
        model_name: kept as provenance.
        save_every: seconds after which scored samples are written to disk.
        rank_timeout: seconds after which a rank that does not come to score, or finishes no
            batch, is given up; one that is gone is, after a minute.
        progress: show a progress bar with samples per second and remaining time.

    Returns:
        A LossTable of n rows in the order of the data set, or in which a stream was read; with
        ``shard``, of the rows that this job has scored.

    Raises:
        FlowDataError: when another rank stopped, naming it and its error.
        InvalidLossError: naming the rows of invalid losses.
        MismatchError: when ``output`` holds, finished or not, another pass, or has other keys; when
            ``known`` is of other rows, or another model or loss, or another one on another rank;
            and, naming them, for keys that are there more than once.
        TableFileError: when ``output`` cannot be written, or someone else is scoring into it.
        TypeError: for data that is neither, or a batch the loss does not understand.
        ValueError: for empty data, an unknown loss, losses of the wrong shape, or, naming the
            row, a sample the language model cannot take.
    """
    if on_invalid not in ("raise", "drop"):
        raise ValueError(f'on_invalid must be "raise" or "drop", got {on_invalid!r}')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    job = job_of(shard)
    if job is not None and (output is None or known is not None):
        raise ValueError(
            "shard= needs output=, beside which a job leaves its rows, and takes no known=: score "
            "the new rows alone, and put them after the others, LossTable.concat"
        )
    parts = None if output is None else Parts(output)
    streamed = key is not None and is_stream(dataset)
    if streamed and (known is not None or num_workers or job is not None):
        raise ValueError(
            "known=, num_workers= and shard= are for rows by number, and this is a stream"
        )
    # First of all: an error on one rank, whatever it is, is one on all.
    with Ranks(rank_timeout) as ranks, ExitStack() as stack:
        # Of a stream, the first rows alone, as soon as they are read.
        data: Any = [] if streamed else dataset
        rows = 0 if streamed else count_rows(dataset)
        model = unwrap_model(model)
        warn_if_parameters_are_new(model)
        keys = None
        if not streamed:
            warn_if_fitted_on(model, dataset)
            keys = None if key is None else keys_of_rows(dataset, key)
        name, options = describe_loss(loss, collate_fn, ignore_index)
        stack.enter_context(evaluating(model))
        stack.enter_context(nullcontext() if adapters else without_adapters(model))
        place = device_of(model, device)
        scoring_pass = make_pass(
            loss, model, data, place, batch_size, collate_fn, ignore_index, key
        )
        provenance = Provenance.now(
            rows,
            dataset=None if streamed else dataset,
            model=model,
            adapters=adapters,
            model_name=model_name or type(model).__name__,
            loss=name,
            options=options,
            dtype=dtype_of(model),
            key=key,
            once=ranks.run_on_first,
        )
        if streamed:
            # Built-in losses give the model each column that is no label.
            leaves_key = (
                name in LANGUAGE_LOSSES or collate_fn is not None or not isinstance(loss, str)
            )
            how = StreamPass(
                *(scoring_pass, model, data, leaves_key, provenance),
                *(on_invalid, save_every, progress),
            )
            table = score_stream(dataset, how, ranks, parts)
        else:
            table = run_pass(
                scoring_pass,
                dataset,
                provenance,
                ranks,
                parts=parts,
                num_workers=num_workers,
                on_invalid=on_invalid,
                save_every=save_every,
                progress=progress,
                keys=keys,
                known=None if known is None else known_rows(known, dataset, provenance, keys),
                job=job,
            )
    warn_if_unreliable(table, data)
    return table


def keys_of_rows(dataset: Any, key: str) -> RowKeys:
    """The keys of the rows in a column of a data set that has columns."""
    if isinstance(dataset, ShardRows):
        raise ValueError(
            f"key={key!r} is for rows that have columns; the table of tar shards has the shard and "
            "the key of each sample in its index"
        )
    return keys_of(dataset, key)


def describe_loss(
    loss: str | LossFunction | LanguageLoss,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    ignore_index: int = IGNORED,
) -> tuple[str, str | None]:
    """Name and options of a loss, for the provenance."""
    if ignore_index != IGNORED and loss not in ("classification", "cross_entropy"):
        raise ValueError(
            f'ignore_index={ignore_index} is for loss="cross_entropy", got {loss!r}: a label of a '
            "language model is not scored where it is below 0, and a function of your own leaves "
            "out what it likes"
        )
    if (language := language_loss(loss)) is not None:
        return language.name, json.dumps(language.identity(), sort_keys=True)
    code: dict[str, Any] = {}
    if isinstance(loss, str):
        if loss not in (*LOSS_FUNCTIONS, "model"):
            raise ValueError(
                f"loss must be one of {[*sorted(LOSS_FUNCTIONS), *LANGUAGE_LOSSES, 'model']}, a "
                f"CausalLM, Seq2Seq or TokenLabels, or a function (model, batch) -> losses, got "
                f"{loss!r}"
            )
        name = loss
    else:
        # A partial function has no name of its own.
        inner = loss
        while isinstance(inner, partial):
            inner = inner.func
        name = getattr(inner, "__name__", type(inner).__name__)
        code["loss_code"] = loss
    if collate_fn is not None:
        code["collate_code"] = collate_fn
    options: dict[str, Any] = {part: code_fingerprint(function) for part, function in code.items()}
    if ignore_index != IGNORED:
        options["ignore_index"] = ignore_index
    return name, json.dumps(options, sort_keys=True) if options else None


def make_pass(
    loss: str | LossFunction | LanguageLoss,
    model: nn.Module,
    dataset: Any,
    device: torch.device,
    batch_size: int,
    collate_fn: Callable[[list[Any]], Any] | None,
    ignore_index: int,
    key: str | None = None,
) -> ScoringPass:
    """What scores the rows of a data set by a loss; a model that is in evaluation mode."""
    require_lasting_attention(model)
    if (language := language_loss(loss)) is not None:
        return language_pass(language, model, device, ProbeRows(dataset))

    def read_first(collate: Callable[[list[Any]], Any], rows: int) -> Any:
        first = np.arange(min(rows, len(dataset)))
        return next(read_batches(dataset, first, size=rows, collate_fn=collate, num_workers=0))[1]

    if isinstance(loss, str):
        known = (accepted_names(model), pad_of(model), ignore_index, vocabulary_of(model))
        text = CollateText(*known, key)
        collate = collate_fn or text
        if loss == "model":
            return ModelLossPass(model, device, batch_size, collate, partial(read_first, list))
        named = loss_function(loss, ignore_index)
        first = partial(read_first, collate)
        # Rows are in order, not of similar length.
        pads: list[bool | None] = [] if rotary_limit(model) is None else [False]
        return TextPass(named, model, device, batch_size, collate, first, pads)
    collate = collate_fn or collate_by_shape
    first_batch = partial(read_first, collate)
    function = cast("LossFunction", loss)
    return FunctionPass(function, model, device, batch_size, collate, first_batch)


def dtype_of(model: nn.Module) -> str | None:
    """The type that a model computes in, for the provenance."""
    first = next(model.parameters(), None)
    if first is None:
        return None
    kinds, device = [first.dtype], first.device.type
    # Inside torch.autocast the same parameters give other numbers.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        kinds.append(torch.get_autocast_dtype(device))
    return " autocast to ".join(str(kind).removeprefix("torch.") for kind in kinds)
