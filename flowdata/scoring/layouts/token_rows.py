"""Rows that have input_ids: their labels, and all else that the model takes."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowdata.scoring.layouts.columns import MASK_COLUMNS
from flowdata.scoring.models.loss_formulas import IGNORED as IGNORED

# One number for each token. Of these, rows can be batched: padding is masked and comes after.
_BATCHED = ("token_type_ids", "mm_token_type_ids", "position_ids")
MEDIA = (
    "pixel_", "image_", "video_", "input_features", "input_values", "feature_attention_mask",
    "second_per_grid", "audio_", "patch_", "num_crops",
)  # fmt: skip
"""How the names begin of what belongs to an image, a video or a sound, whatever its shape."""

# How a model is to run, or what it remembers: no part of a sample.
_NOT_OF_A_SAMPLE = (
    "inputs_embeds", "past_key_values", "use_cache", "cache_position", "cache_params",
    "return_dict", "output_attentions", "output_hidden_states", "output_router_logits",
    "logits_to_keep", "num_logits_to_keep", "num_items_in_batch", "is_causal",
)  # fmt: skip
# trl 1.16, pack_dataset, and transformers 5.23, DataCollatorWithFlattening: where samples that
# share a row begin.
_OF_PACKS = ("seq_lengths", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")
_WEIGHTS = (
    "weight", "weights", "loss_weight", "loss_weights", "loss_scale", "sample_weight",
    "sample_weights",
)  # fmt: skip


_NOT_TAKEN = (
    "the row has {}, which the forward of the model does not take: it would be scored without; "
    "score with the whole model, or take the column out"
)


class Tokens(NamedTuple):
    """One sample: ids and labels of shape (length,), int64; label t is that of token t."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    truncated: bool = False
    inputs: Mapping[str, Tensor] = {}
    """What else the model takes, as the row has it."""
    masked: bool = True
    """Whether the model is given an attention mask."""
    layout: str = "tokens"
    """"tokens", "text", "turns", or "" of a row that has nothing."""

    @property
    def alone(self) -> bool:
        """Whether the row can only be in a batch of its own."""
        return not self.masked or any(
            name not in _BATCHED or value.shape != self.ids.shape
            for name, value in self.inputs.items()
        )

    @property
    def length(self) -> int:
        """Tokens that the model is given."""
        return self.ids.size

    @property
    def sides(self) -> tuple[int, ...]:
        """What it takes in a batch: tokens of each of what is padded apart."""
        return (self.ids.size,)

    @property
    def kind(self) -> Hashable:
        """Alike for samples that can be one batch; None where it can only be alone."""
        return None if self.alone else frozenset(self.inputs)

    @property
    def has_media(self) -> bool:
        """Whether there is an image, a video or a sound."""
        return any(name.startswith(MEDIA) for name in self.inputs)

    def cut(self, limit: int) -> "Tokens":
        """The first tokens of a sample, and what belongs to them."""
        inputs = {
            name: value[..., :limit] if _is_per_token(name, value, self.ids.size) else value
            for name, value in self.inputs.items()
        }
        return self._replace(
            ids=self.ids[:limit], labels=self.labels[:limit], truncated=True, inputs=inputs
        )


def without_other_inputs(row: Mapping[str, Any], named: Sequence[str]) -> dict[str, Any]:
    """A row without what neither adds a token nor takes one away: media, positions, weights.

    Args:
        row: a row.
        named: columns that are read, whatever they are called.
    """
    others = ("position_ids", *_WEIGHTS)
    return {
        name: value
        for name, value in row.items()
        if name in named or not (name in others or str(name).startswith(MEDIA))
    }


def refuse_media(row: Mapping[str, Any], accepted: frozenset[str]) -> None:
    """Make sure that a row has no image, video or sound that a model would take, and is not given.

    Raises:
        ValueError: naming the column.
    """
    takes = {name for name in accepted if name.startswith(MEDIA)}
    raw = {"image", "images", "video", "videos", "audio", "audios"} if takes else set()
    found = sorted(name for name in row if name in takes | raw and _is_there(row[name]))
    if found:
        raise ValueError(
            f"the row has {found}, of which its text or tokens know nothing: have the processor of "
            "the model make input_ids, labels and what else its forward takes, or take the column "
            "out"
        )


def refuse_weights(row: Mapping[str, Any]) -> None:
    """Make sure that a row has no weight of its own, or the weight 1.

    Raises:
        ValueError: naming the column.
    """
    for name in filter(row.__contains__, _WEIGHTS):
        value = row[name]
        # NaN is what pandas writes where a row has none.
        if _is_number(value) and value != 1 and not np.isnan(value):
            raise ValueError(
                f"the row has {name}={value}, and a loss is that of the model alone: take the "
                "column out, and multiply the weights by it"
            )


def read_token_row(row: Mapping[str, Any], accepted: frozenset[str]) -> Tokens:
    """The tokens of a row, without the padding its attention mask shows.

    Args:
        row: with input_ids and labels, or with a mask of what is scored in place of labels; also
            as a processor makes it, a batch of one.
        accepted: names of what the forward of the model takes.

    Raises:
        TypeError, ValueError: for shapes that do not fit, or what the model cannot be given.
    """
    row = _without_axis_of_one(row)
    ids = read_integers(row, "input_ids")
    if ids.ndim != 1:
        raise ValueError(f"input_ids of a row must have the shape (length,), got {ids.shape}")
    labels = _read_labels(row, ids, accepted)
    inputs = read_inputs(row, ids.size, accepted)
    if not any(name.startswith(MEDIA) for name in inputs):
        refuse_media(row, accepted)
    mask = row.get("attention_mask")
    masked = mask is not None or "position_ids" not in inputs or _is_one_sample(inputs)
    if mask is not None:
        kept = read_padding(mask, ids)
        inputs = {
            name: value[..., torch.from_numpy(kept)]
            if _is_per_token(name, value, ids.size)
            else value
            for name, value in inputs.items()
        }
        ids, labels = ids[kept], labels[kept]
    return Tokens(ids, labels, inputs=inputs, masked=masked)


def _without_axis_of_one(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of a batch of one: what processors of transformers make of one sample.

    What belongs to images has an axis of images, which stays.
    """
    shape = np.shape(row["input_ids"])
    if len(shape) != 2 or shape[0] != 1:
        return row
    return {
        name: value if str(name).startswith(MEDIA) or not _is_one_of_many(value) else value[0]
        for name, value in row.items()
    }


def _is_one_of_many(value: Any) -> bool:
    """Whether there is an axis of one before others."""
    if getattr(value, "ndim", None) == 0 or isinstance(value, str) or not hasattr(value, "__len__"):
        return False
    return len(value) == 1 and np.ndim(value[0]) > 0


def _read_labels(
    row: Mapping[str, Any], ids: NDArray[np.int64], accepted: frozenset[str]
) -> NDArray[np.int64]:
    scored = np.ones(ids.size, dtype=np.bool_)
    names = [*(name for name in _WEIGHTS if not _is_number(row.get(name))), *MASK_COLUMNS]
    masks = [name for name in names if row.get(name) is not None and name not in accepted]
    for name in masks:
        mask = np.asarray(row[name])
        if not _are_flags(mask, ids, kinds="buif"):
            raise ValueError(
                f"{name} must be one 0 or 1 for each of the {ids.size} input_ids, got an array of "
                f"shape {mask.shape} and type {mask.dtype}: put -100 into labels where a token is "
                "not scored, and take the column out"
            )
        scored &= mask.astype(np.bool_)
    if row.get("labels") is None:
        return np.where(scored, ids, IGNORED)
    labels = read_integers(row, "labels")
    if ids.shape != labels.shape:
        raise ValueError(
            f"input_ids and labels of a row must have one shape (length,), got {ids.shape} and "
            f"{labels.shape}"
        )
    if np.any(labels[~scored] >= 0):
        raise ValueError(
            f"labels score tokens that {masks} leave out: take out one of them, or put -100 into "
            "labels where a token is not scored"
        )
    return labels


def read_inputs(row: Mapping[str, Any], length: int, accepted: frozenset[str]) -> dict[str, Tensor]:
    """What the model takes beside ids, labels and mask."""
    refuse_weights({name: row[name] for name in _WEIGHTS if name in row and name not in accepted})
    done = {"input_ids", "labels", "attention_mask"}
    inputs = {}
    for name, value in row.items():
        if name in done or not _is_there(value):
            continue
        if name in _OF_PACKS:
            raise ValueError(
                f"the row has {name}: it is a pack of several samples; score the samples before "
                "they are packed"
            )
        if name in accepted and name in _NOT_OF_A_SAMPLE:
            raise ValueError(
                f"the row has {name}, which the model takes, but which is no part of a sample: "
                "take the column out"
            )
        if name in accepted:
            inputs[name] = as_tensor(name, value)
        elif is_media(name, value):
            raise ValueError(_NOT_TAKEN.format(name))
        elif name == "position_ids" and not _is_one_sample({name: as_tensor(name, value)}):
            raise ValueError(
                "the row has position_ids, which the forward of the model does not take, and "
                "which are not those of one sample: score the samples before they are packed"
            )
    for name in _BATCHED:
        if name in inputs and inputs[name].shape[-1] != length:
            raise ValueError(
                f"{name} must be one number for each of the {length} input_ids, got the shape "
                f"{tuple(inputs[name].shape)}"
            )
    return inputs


def _are_flags(values: NDArray[Any], ids: NDArray[np.int64], *, kinds: str) -> bool:
    """Whether there is a 0 or 1, of one of these kinds of type, for each token."""
    fits = values.shape == ids.shape and values.dtype.kind in kinds
    return fits and bool(np.isin(values, (0, 1)).all())


def read_padding(mask: Any, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a row is not padding."""
    found = np.asarray(mask)
    if not _are_flags(found, ids, kinds="bui"):
        raise ValueError(
            f"attention_mask must be one 0 or 1 for each of the {ids.size} input_ids, got shape "
            f"{found.shape} with values {np.unique(found)[:5].tolist()}: a mask that says more, as "
            "of packed samples, cannot be kept; score the samples before they are packed"
        )
    kept: NDArray[np.bool_] = found.astype(np.bool_)
    inner = np.flatnonzero(kept)
    if inner.size and inner[-1] - inner[0] + 1 != inner.size:
        raise ValueError(
            "attention_mask is 0 between tokens, not only where a row is padded: take the column "
            "out, or these tokens"
        )
    return kept


def refuse_other_media(row: Mapping[str, Any], accepted: frozenset[str]) -> None:
    """Make sure that a row has no image, video or sound that the model does not take.

    Raises:
        ValueError: naming the column.
    """
    for name, value in row.items():
        if name not in accepted and is_media(name, value):
            raise ValueError(_NOT_TAKEN.format(name))


def is_media(name: Any, value: Any) -> bool:
    """Whether a column holds an image, a video or a sound: a text says something about one."""
    return isinstance(name, str) and name.startswith(MEDIA) and not _is_scalar(value)


def _is_one_sample(inputs: Mapping[str, Tensor]) -> bool:
    positions = inputs["position_ids"]
    return positions.ndim == 1 and bool((positions.diff() == 1).all())


def _is_per_token(name: str, value: Tensor, length: int) -> bool:
    return value.ndim > 0 and value.shape[-1] == length and not name.startswith(MEDIA)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float) or getattr(value, "ndim", None) == 0


def _is_number(value: Any) -> bool:
    return _is_scalar(value) and np.asarray(value).dtype.kind in "buif"


def _is_there(value: Any) -> bool:
    """Tables write None, or a list of nothing, where a row does not have what others have."""
    if value is None:
        return False
    shape = getattr(value, "shape", None)
    empty = 0 in shape if shape is not None else hasattr(value, "__len__") and not len(value)
    return not empty


def read_integers(row: Mapping[str, Any], name: str) -> NDArray[np.int64]:
    """Whole numbers in a column of a row."""
    found = np.asarray(row[name])
    if found.size == 0:
        return np.zeros(found.shape, dtype=np.int64)
    whole = found.dtype.kind in "iu" or (
        found.dtype.kind == "f" and bool((np.isfinite(found) & (found == np.rint(found))).all())
    )
    if not whole:
        raise TypeError(f"{name} must be whole numbers, got {found.dtype}: {found.ravel()[:5]}")
    return found.astype(np.int64)


def as_tensor(name: str, value: Any) -> Tensor:
    """What the model takes, as a tensor; floats in single precision."""
    try:
        if isinstance(value, Tensor):
            return value.detach()
        if isinstance(value, list | tuple) and all(isinstance(part, Tensor) for part in value):
            return torch.stack(list(value))
        found = torch.from_numpy(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"the row has {name}, which the model takes, as {type(value).__name__} that is no "
            f"array of numbers ({error}): make one of it, as the processor of the model does, or "
            "take the column out"
        ) from error
    # A table keeps floats in double precision, which a model does not compute in.
    return found.float() if found.dtype == torch.float64 else found
