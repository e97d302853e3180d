"""What a model makes of a sample by what else it is given, or was given before."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.models.forward import OWN_FUNCTION, predict
from flowdata.scoring.models.own_loss import SAMPLES_TRIED, UNLIKE, is_precise, some_samples

# TF32 moves outputs by less, whatever comes of it for the loss of a nearly exact regression.
_ROUNDING = 2e-3
# Some kernels of a GPU add up in an order that changes, and low precision shows it.
_UNLIKE_IN_LOW_PRECISION = 0.3


def require_losses_of_samples(
    losses_of: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    rows: NDArray[np.int64],
    batch: Any,
    losses: Tensor,
) -> None:
    """Refuse losses that are others when they are computed again, or when a sample is alone.

    The second is not tried in low precision, which moves the losses of a batch against those of a
    sample alone, nor of a batch that has anything but tensors of one value a sample.

    Args:
        losses_of: (model, batch) -> losses of shape (m,).
        model: in evaluation mode.
        rows: numbers of the samples, of shape (m,).
        batch: of these samples.
        losses: what ``losses_of`` gave for it.

    Raises:
        ValueError: naming a row whose loss is another.
    """
    name, size = type(model).__name__, rows.size
    precise = is_precise(model, losses.device)
    share = UNLIKE if precise else _UNLIKE_IN_LOW_PRECISION
    again = losses_of(model, batch)
    unlike = _unlike(again, losses, share).nonzero()
    place = int(unlike[0]) if len(unlike) else 0
    if len(unlike) and _are_unlike(*(predict(model, batch)[0][place] for _ in range(2))):
        raise ValueError(
            f"the loss of row {rows[place]} is random: {losses[place].item():.6g}, and "
            f"{again[place].item():.6g} the second time. {name} draws random numbers in evaluation "
            "mode, as F.dropout without training=self.training does, or keeps something from one "
            f"batch to the next; else pass {OWN_FUNCTION} that averages over many draws"
        )
    if size == 1 or not (precise and _is_stacked(batch, size)):
        return
    # torch 2.13: a compiled model would be compiled once more for one sample.
    eager = getattr(model, "_orig_mod", model)
    for place in range(min(SAMPLES_TRIED, size)):
        found = _losses_of_fewer(losses_of, eager, batch, place, size)
        if found is None:
            continue
        part, fewer = found
        if not _unlike(fewer[0], losses[place], share) or not _are_unlike(
            predict(eager, part)[0][0], predict(model, batch)[0][place]
        ):
            continue
        is_alone = len(fewer) == 1
        raise ValueError(
            f"the loss of row {rows[place]} depends on the other rows of its batch: "
            f"{losses[place].item():.6g} among {size}, {fewer[0].item():.6g} "
            f"{'alone' if is_alone else 'beside one other'}. {name} compares rows, or normalizes "
            "over a batch, as BatchNorm without running statistics does; pass "
            f"{'batch_size=1 for the loss of each row alone, or ' * is_alone}{OWN_FUNCTION}"
        )


def _losses_of_fewer(
    losses_of: Callable[[nn.Module, Any], Tensor],
    model: nn.Module,
    batch: Any,
    place: int,
    size: int,
) -> tuple[Any, Tensor] | None:
    """A batch of the sample in one place alone, or of it and the next, and losses; else None."""
    for count in range(1, min(3, size - place + 1, size)):
        part = some_samples(batch, place, size, count)
        try:
            return part, losses_of(model, part)
        # Whatever is raised by a model that takes no batch of one.
        except Exception:
            continue
    return None


def _unlike(found: Tensor, wanted: Tensor, share: float) -> Tensor:
    allowed = share * (wanted.abs() + 0.1)
    return found.isfinite() & wanted.isfinite() & ((found - wanted).abs() > allowed)


def _are_unlike(output: Tensor, other: Tensor) -> bool:
    return bool((output - other).abs().max() > _ROUNDING * other.abs().max())


def _is_stacked(value: Any, size: int) -> bool:
    """Whether all that is in a batch is tensors of one value a sample."""
    if isinstance(value, Mapping):
        return all(_is_stacked(part, size) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_is_stacked(part, size) for part in value)
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == size


def require_lasting_attention(model: nn.Module) -> None:
    """Refuse a model that takes another attention for good after a short row.

    transformers 5.23, BigBirdModel.forward, BigBirdPegasusEncoder.forward: a batch of few tokens
    makes the model one of full attention, whose losses of longer rows are others than before.

    Raises:
        TypeError: for such a model.
    """
    if any(
        getattr(module, "attention_type", None) == "block_sparse"
        and hasattr(module, "set_attention_type")
        for module in model.modules()
    ):
        raise TypeError(
            f"{type(model).__name__} with attention_type='block_sparse' turns to full attention at "
            "the first short row, and remains so: a loss would depend on the rows before. Load it "
            "with from_pretrained(..., attention_type='original_full')"
        )


def rotary_limit(model: Any) -> int | None:
    """The length above which rotary embeddings are others for all tokens of a batch, if any.

    transformers 5.23, longrope_frequency_update: the longest row of a batch decides for all.
    """
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    found = [
        limit
        for part in parts
        for rope in _rope_parameters(part)
        if rope.get("rope_type") == "longrope"
        and isinstance(limit := rope.get("original_max_position_embeddings"), int)
    ]
    return min(found, default=None)


def _rope_parameters(config: Any) -> Iterator[Mapping[str, Any]]:
    """Those of all layers, or of each kind of layers."""
    found = getattr(config, "rope_parameters", None)
    if isinstance(found, Mapping):
        yield found
        yield from (value for value in found.values() if isinstance(value, Mapping))


def on_one_side(
    places: NDArray[np.int64], lengths: NDArray[Any], limit: int | None
) -> list[NDArray[np.int64]]:
    """Places of samples that are longer than a limit, and of those that are not."""
    if limit is None:
        return [places]
    is_long = lengths[places] > limit
    return [some for some in (places[is_long], places[~is_long]) if some.size]
