"""What a model makes of a sample by what else it is given, or was given before."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn


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
