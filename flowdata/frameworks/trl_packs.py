"""Packs of the rows that TRL's SFTTrainer has tokenized, trained on as its own packs are."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from flowdata.core.weights import FlowWeights
from flowdata.frameworks.pack_checks import require_no_context_parallelism, require_packs_apart
from flowdata.frameworks.trainer import FlowCallback, draws_a_step
from flowdata.map_style.packed_rows import INPUT_IDS, LABELS, POSITION_IDS
from flowdata.map_style.packs import FlowPacks

_SEQ_LENGTHS = "seq_lengths"
_ROWS_AT_A_TIME = 10_000


@dataclass(frozen=True)
class PacksOrRows:
    """The data collator of a trainer that trains on packs and evaluates on rows.

    Packs become one row of ``input_ids``, ``labels`` and ``position_ids``, with what kernels of
    variable length need beside them, and no ``attention_mask``: TRL's own collator makes it, as of
    its own packs.

    Args:
        packs: of TRL, ``padding_free``.
        rows: what the trainer has for rows.
    """

    packs: Any
    rows: Any

    def __call__(self, items: list[Any]) -> Any:
        """The batch of packs, or of rows."""
        if POSITION_IDS not in items[0]:
            return self.rows(items)
        return self.packs(
            [
                {
                    INPUT_IDS: item[INPUT_IDS].tolist(),
                    LABELS: item[LABELS].tolist(),
                    _SEQ_LENGTHS: _sample_lengths(item[POSITION_IDS].numpy()),
                }
                for item in items
            ]
        )


def set_packs(
    trainer: Any,
    weights: FlowWeights,
    max_length: int | None,
    lengths: NDArray[np.int64] | None,
    options: dict[str, Any],
) -> FlowPacks:
    """Have an SFTTrainer train on packs of its rows.

    Nothing is set where something is refused.

    Raises:
        ContaminationError: for a model that lets the samples of a pack see each other.
        TypeError: for a trainer whose rows or collator are not those of text in SFTTrainer.
        ValueError: without ``max_length``, and for what `FlowPacks` refuses.
    """
    args = trainer.args
    max_length = getattr(args, "max_length", None) if max_length is None else max_length
    if max_length is None:
        raise ValueError(
            "packing needs max_length, the tokens of a pack: draw_from(trainer, weights, "
            "packing=True, max_length=1024)"
        )
    collator = _padding_free(trainer)
    require_no_context_parallelism(trainer.accelerator)
    rows = _token_columns(trainer)
    options = {"batch_size": draws_a_step(args)} | options
    lengths = _count_tokens(rows) if lengths is None else lengths
    packs = FlowPacks(rows, weights, lengths, max_length, **options)
    collate = PacksOrRows(collator, trainer.data_collator)
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        # Where a model is divided among ranks, the callback checks, when training begins.
        with trainer.accelerator.autocast():
            require_packs_apart(
                trainer.model,
                packs,
                _Collated(collate),
                args.train_batch_size,
                use_cache=False,
            )
    trainer.train_dataset, trainer.data_collator = packs, collate
    # The Trainer would take away position_ids, which SFTTrainer does not name.
    args.remove_unused_columns = False
    if not any(isinstance(each, FlowCallback) for each in trainer.callback_handler.callbacks):
        trainer.add_callback(FlowCallback())
    return packs


@dataclass(frozen=True)
class _Collated:
    """What `require_packs_apart` asks of a loader."""

    collate_fn: Any


def _padding_free(trainer: Any) -> Any:
    collator = trainer.data_collator
    # trl 1.16, sft_trainer.py: DataCollatorForLanguageModeling, a dataclass.
    if not hasattr(collator, "padding_free"):
        raise TypeError(
            "packing needs the collator that SFTTrainer makes for text, and this trainer "
            f"({type(trainer).__name__}) has a {type(collator).__name__}: packs are for SFTTrainer "
            "on text; leave data_collator out of its arguments"
        )
    return dataclasses.replace(collator, padding_free=True)


def _token_columns(trainer: Any) -> Any:
    """The rows with those columns alone that say which tokens are learned, as TRL has it."""
    rows = trainer.train_dataset
    if INPUT_IDS not in rows.column_names:
        raise TypeError(
            f"packing needs tokenized rows, and the trainer has columns {rows.column_names}: packs "
            "are for SFTTrainer on text"
        )
    named = [INPUT_IDS, LABELS]
    if LABELS not in rows.column_names:
        # Earlier releases of TRL than 1.16 leave it to the collator to make labels of these.
        only = getattr(trainer, "completion_only_loss", False)
        named = [INPUT_IDS, "assistant_masks", *(["completion_mask"] if only else [])]
    return rows.select_columns([name for name in named if name in rows.column_names])


def _count_tokens(rows: Any) -> NDArray[np.int64]:
    tables = rows.select_columns([INPUT_IDS]).with_format("arrow").iter(_ROWS_AT_A_TIME)
    counts = [pc.list_value_length(table[INPUT_IDS]).to_numpy() for table in tables]
    return np.concatenate([np.zeros(0, dtype=np.int64), *counts]).astype(np.int64)


def _sample_lengths(positions: NDArray[np.int64]) -> list[int]:
    bounds = np.append(np.flatnonzero(positions == 0), positions.size)
    lengths: list[int] = np.diff(bounds).tolist()
    return lengths
