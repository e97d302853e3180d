"""The check for samples that see each other, of what a framework is about to train on."""

from collections.abc import Callable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from flowdata.errors import warn
from flowdata.frameworks.contamination import (
    MOST_TOKENS,
    ContaminationError,
    NoLogitsError,
    require_apart,
)
from flowdata.frameworks.sources import Source
from flowdata.map_style.pack_sampler import FlowPackSampler
from flowdata.map_style.packed_rows import INPUT_IDS, join, read_sample
from flowdata.map_style.packs import FlowPacks
from flowdata.map_style.weighted_item import WeightedItem

_MOST_PACKS = 16
"""In so many packs, two rows of two tokens are looked for."""


def require_packs_apart(
    model: nn.Module, source: Source, loader: Any, batch_size: int = 1, **inputs: Any
) -> None:
    """Refuse a model that lets samples see each other, where packs are drawn.

    Args:
        model: what is trained.
        source: what is drawn from; nothing is said of one that draws no packs.
        loader: has its ``collate_fn`` and, if the source is a sampler, the ``dataset`` of its rows.
            Nothing is said of rows that only ``collate_fn`` makes tokens of.
        batch_size: packs in a batch.
        inputs: see `require_separate`.

    Raises:
        ContaminationError: see `require_separate`.

    Warns:
        FlowDataWarning: for a model that gives no logits.
    """
    if isinstance(source, FlowPacks):
        rows, batch_of = _rows(source, source.dataset), _batches_of_packs(loader, batch_size)
    elif isinstance(source, FlowPackSampler):
        rows, batch_of = _rows(source, loader.dataset), loader.collate_fn
    else:
        return
    if not rows:
        return
    ids = [_ids(row) for row in rows]
    try:
        batches = [batch_of(given) for given in (rows, rows[:1], rows[1:])]
    except Exception:
        if isinstance(source, FlowPacks) and getattr(loader, "dataset", source) is not source:
            # Something stands between the two, and its items may be of another kind.
            return
        raise
    try:
        require_apart(model, ids, batches, **inputs)
    except NoLogitsError as error:
        # Of a loss alone, nothing can be said.
        warn(str(error))


def require_no_context_parallelism(accelerator: Any) -> None:
    """Refuse to divide packs among processes within a sample.

    Raises:
        ContaminationError: for context or sequence parallelism.
    """
    # accelerate 1.15: context parallelism takes masks away, see also trl 1.16, SFTTrainer.__init__.
    config = getattr(accelerator, "parallelism_config", None)
    for name in ("cp_enabled", "sp_enabled"):
        if getattr(config, name, False):
            raise ContaminationError(
                f"parallelism_config.{name}: context and sequence parallelism train without the "
                "masks by which the samples of a pack are kept apart; train on packs without it"
            )


def _rows(source: FlowPacks | FlowPackSampler, dataset: Any) -> list[Any]:
    """Two rows that are drawn, cut where that can be done; none if they are no tokens."""
    plan, found = source.plan, []
    for pack in plan.of(range(min(len(plan), _MOST_PACKS))):
        for number in pack.tolist():
            row = _cut(dataset[number])
            if not isinstance(getattr(row, "item", row), Mapping) or len(_ids(row)) < 2:
                continue
            found.append(row)
            if len(found) == 2:
                return found
    # Of a data set that is one row, twice that.
    return 2 * found


def _cut(row: Any) -> Any:
    """The first tokens of a row: columns that go by token are cut with them."""
    if not isinstance(row, Mapping) or not isinstance(row.get(INPUT_IDS), Sized):
        return row
    tokens = len(row[INPUT_IDS])
    by_token: dict[str, Any] = {
        name: values[:MOST_TOKENS]
        for name, values in row.items()
        if hasattr(values, "__len__") and not isinstance(values, str) and len(values) == tokens
    }
    return {**row, **by_token}


def _ids(row: Any) -> Tensor:
    row = row.item if isinstance(row, WeightedItem) else row
    return torch.as_tensor(row.get(INPUT_IDS, ())).reshape(-1).long()


def _batches_of_packs(loader: Any, batch_size: int) -> Callable[[list[Any]], Any]:
    # As many packs as are seen by some models in another way than one.
    copies = min(batch_size, 2)

    def batch_of(rows: list[Any]) -> Any:
        numbers = [*range(len(rows))]
        pack = join([read_sample(row, number) for number, row in enumerate(rows)], numbers)
        return loader.collate_fn([pack] * copies)

    return batch_of
