"""``flowdata score``: losses of a model on a data set, once, into a table."""

import argparse
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowdata.commands.options import (
    Commands,
    add_columns,
    add_data,
    name_of,
    new_table_of,
    non_negative,
    open_data,
    path_of,
    positive,
    require_place,
    seconds,
)
from flowdata.commands.proxy import add_proxy, score_by_proxy
from flowdata.commands.shard import add_shard, print_share, shard_of
from flowdata.commands.speech import print_summary
from flowdata.errors import warn
from flowdata.table.loss_table import LossTable

if TYPE_CHECKING:
    from flowdata.scoring.language.named_losses import LanguageLoss
    from flowdata.scoring.layouts.columns import Columns

_OF_CAUSAL_MODELS = ("prompt", "response", "messages", "text", "turns")
_OF_PAIRS = ("source", "target")
_OF_LANGUAGE = (*_OF_CAUSAL_MODELS, *_OF_PAIRS, "max_length", "max_tokens", "token_losses")


def add_score(commands: Commands) -> None:
    """The command ``score``."""
    score = commands.add_parser(
        "score",
        help="losses of a language model on a data set, once, into a table",
        description="Score every sample of a data set with a causal language model and write the "
        "losses to a Parquet table. Killed at any moment, the same command goes on. On several "
        "GPUs: torchrun --nproc-per-node 4 -m flowdata score ...",
    )
    score.add_argument(
        "--model", type=name_of, required=True, help="folder, GGUF file, or name on the hub"
    )
    score.add_argument(
        "--tokenizer", type=name_of, help="folder or name; default that of the model"
    )
    add_data(score, required=True)
    columns = add_columns(score, "input_ids and labels")
    columns.add_argument("--source", metavar="COLUMN", help="of --loss seq2seq: text that is read")
    columns.add_argument("--target", metavar="COLUMN", help="of --loss seq2seq: text, scored")
    score.add_argument(
        "--turns",
        choices=("assistant", "last", "all"),
        help="turns of a chat that are scored: all that the assistant says (default of "
        "--messages), the last of it, or the whole text; default of --response all of it",
    )
    score.add_argument(
        "--output",
        type=new_table_of,
        required=True,
        help="the table, a .parquet file, or a URL such as s3://bucket/losses.parquet",
    )
    add_shard(score)
    score.add_argument(
        "--key", metavar="COLUMN", help="numbers or texts by which the table shall know its rows"
    )
    score.add_argument(
        "--known",
        type=path_of,
        metavar="TABLE",
        help="a table of some of these rows, which are not scored again: found by key, or the "
        "first ones",
    )
    score.add_argument(
        "--loss",
        choices=("causal_lm", "seq2seq", "token_labels", "classification", "model"),
        default="causal_lm",
        help="causal_lm; seq2seq, of encoder-decoders; token_labels, of models that label tokens "
        "or fill in masked ones; or the loss that any model computes itself: classification, in "
        "batches, or model, one row at a time",
    )
    score.add_argument("--max-length", type=positive, help="cut longer samples to these tokens")
    score.add_argument(
        "--max-tokens", type=positive, help="tokens of a batch; default what keeps the device busy"
    )
    score.add_argument("--token-losses", action="store_true", help="keep the loss of each token")
    score.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="numbers to compute with; default auto, as saved",
    )
    score.add_argument("--device", help="default the GPU if there is one, else the CPU")
    score.add_argument(
        "--adapters", action="store_true", help="score a PEFT model as adapted, not its base model"
    )
    score.add_argument(
        "--num-workers", type=non_negative, default=0, help="processes that read and tokenize"
    )
    score.add_argument(
        "--rank-timeout",
        type=seconds,
        default=600.0,
        help="seconds after which torchrun's ranks give up one that does not get on (default 600)",
    )
    score.add_argument(
        "--on-invalid",
        choices=("raise", "drop"),
        default="raise",
        help="samples without a response token or with a NaN loss: stop, or give them weight 0",
    )
    score.add_argument(
        "--engine",
        choices=("torch", "ray"),
        default="torch",
        help="what runs the pass: this process or torchrun's (default), or workers of a Ray "
        "cluster, that of RAY_ADDRESS or one that is begun here; all see the same model and data",
    )
    score.add_argument(
        "--workers", type=positive, help="of --engine ray, one a GPU, if it has any (default 1)"
    )
    add_proxy(score)
    score.set_defaults(run=_run_score, parser=score, goes_on=True)


def _run_score(options: argparse.Namespace) -> None:
    from flowdata.scoring import score
    from flowdata.scoring.layouts.columns import Columns
    from flowdata.scoring.layouts.pairs import PairColumns
    from flowdata.scoring.models.inference import count_rows
    from flowdata.scoring.open_inputs import open_model
    from flowdata.scoring.passes.ranks import join_torchrun
    from flowdata.table.data_columns import keys_of

    # A large model takes minutes to load: what may be wrong otherwise is found out before.
    require_place(options.output)
    shard = shard_of(options)
    columns = Columns(options.prompt, options.response, options.messages, options.text)
    named = options.loss in ("classification", "model")
    data = _open_rows(options, as_tensors=named)
    count_rows(data)
    if named:
        _refuse(
            options,
            _OF_LANGUAGE,
            f"is for --loss causal_lm: with --loss {options.loss} rows have what the forward of "
            "the model takes, and labels",
        )
    elif options.loss != "causal_lm":
        _refuse(options, _OF_CAUSAL_MODELS)
        if options.loss != "seq2seq":
            _refuse(options, _OF_PAIRS)
        PairColumns(options.source, options.target).check(data.column_names)
    else:
        _refuse(options, _OF_PAIRS)
        columns.check(data.column_names)
        columns.check_choice(options.turns)
    if options.key is not None:
        keys_of(data, options.key)
    if options.sample is not None and options.proxy is None:
        raise ValueError("--sample is of rows that a small model scores too: name it by --proxy")
    if options.proxy is not None:
        score_by_proxy(
            options,
            data,
            lambda of: of.loss if named else _loss(of, columns, _tokenizer(of)),
        )
        return
    if options.engine == "ray" and shard is not None:
        raise ValueError("--shard is for jobs that score by themselves: leave out --engine ray")
    if options.engine == "ray":
        print_summary(_score_on_ray(options, columns), options.output)
        return
    if options.workers is not None:
        raise ValueError("--workers are those of --engine ray: torchrun starts its own")
    with join_torchrun() as process:
        model = open_model(
            options.model,
            dtype=options.dtype,
            device=options.device,
            local_rank=process.local_rank,
            as_saved=options.loss != "causal_lm",
        )
        if options.adapters and not hasattr(model, "peft_config"):
            warn(
                f"{options.model} has no adapters: leave --adapters out, with which this is "
                "another pass than without it"
            )
        losses = score(
            model,
            data,
            options.loss if named else _loss(options, columns, _tokenizer(options)),
            output=options.output,
            shard=shard,
            key=options.key,
            known=options.known,
            num_workers=options.num_workers,
            on_invalid=options.on_invalid,
            adapters=options.adapters,
            model_name=str(options.model),
            rank_timeout=options.rank_timeout,
        )
        if process.rank == 0 and shard is not None:
            print_share(losses, options.output, shard)
        elif process.rank == 0:
            print_summary(losses, options.output)


def _loss(options: argparse.Namespace, columns: "Columns", tokenizer: Any) -> "LanguageLoss":
    from flowdata.scoring import CausalLM, Seq2Seq, TokenLabels

    how = {"max_tokens": options.max_tokens, "token_losses": options.token_losses}
    if options.loss == "token_labels":
        return TokenLabels(options.max_length, **how)
    if options.loss == "seq2seq":
        longest = (options.max_length, options.max_length)
        return Seq2Seq(tokenizer, options.source, options.target, *longest, **how)
    return CausalLM(
        tokenizer=tokenizer,
        **asdict(columns),
        max_length=options.max_length,
        turns=options.turns,
        **how,
    )


def _tokenizer(options: argparse.Namespace) -> Any:
    """The tokenizer, where rows have text."""
    from flowdata.scoring.open_inputs import open_tokenizer

    if options.loss != "causal_lm" and options.target is None:
        return None
    return open_tokenizer(options.tokenizer or options.model)


def _score_on_ray(options: argparse.Namespace, columns: "Columns") -> LossTable:
    from flowdata.scoring.engines.ray_pass import score_on_ray

    # Workers may run in another folder than this command.
    model, data = (
        str(Path(name).resolve()) if Path(name).exists() else str(name)
        for name in (options.model, options.data)
    )
    where = argparse.Namespace(data=data, split=options.split)
    named = options.loss in ("classification", "model")
    return score_on_ray(
        partial(_open_in_worker, model, options.dtype, options.device, options.loss != "causal_lm"),
        partial(_open_rows, where, as_tensors=named),
        options.loss if named else _loss(options, columns, _tokenizer(options)),
        workers=options.workers or 1,
        output=options.output,
        key=options.key,
        known=options.known,
        on_invalid=options.on_invalid,
        adapters=options.adapters,
        model_name=str(options.model),
    )


def _open_rows(where: argparse.Namespace, *, as_tensors: bool) -> Any:
    data = open_data(where)
    return data.with_format("torch") if as_tensors else data


def _open_in_worker(model: str, dtype: str, device: str | None, as_saved: bool) -> Any:
    from flowdata.scoring.engines.worker import assigned_device
    from flowdata.scoring.open_inputs import open_model

    device = device or str(assigned_device())
    return open_model(model, dtype=dtype, device=device, local_rank=0, as_saved=as_saved)


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str | None = None) -> None:
    """Refuse options that the loss has no use for."""
    if given := [f"--{name.replace('_', '-')}" for name in names if getattr(options, name)]:
        raise ValueError(f"{', '.join(given)} {why or f'is not for --loss {options.loss}'}")
