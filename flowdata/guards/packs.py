"""PacksGuard: makes sure that what stands behind FlowPacks keeps the samples of a pack apart."""

import contextlib
from typing import Any

from flowdata.guards.fetching import find_fetch
from flowdata.guards.stack import frames
from flowdata.guards.switch import enabled

_POSITIONS = "position_ids"
# transformers 5.23, data/data_collator.py: `DataCollatorWithFlattening` numbers the tokens of each
# item from 0, the others pad by a tokenizer, which adds an attention mask and leaves positions
# out; so does trl 1.16, trainer/sft_trainer.py. `DefaultDataCollator` stacks what it is given.
_LIBRARIES = ("transformers.", "trl.")
_MIXING = "DataCollator"
# transformers 5.23, trainer_utils.py: `RemoveColumnsCollator` takes out what a model's forward
# does not name, and has the collator that comes after.
_INNER = ("data_collator", "collate_fn", "_collate")
_MOST = 8
# torch 2.13 and transformers 5.23: these stack the items of a batch.
_STACKING = ("default_collate", "default_data_collator", "DefaultDataCollator")

# torch 2.13 and torchdata 0.11: what makes batches of what ``sampler=`` draws, one by one.
_SAMPLERS = ("torch.utils.data.sampler", "torchdata.stateful_dataloader.sampler")


def require_batch_sampler() -> None:
    """Packs of rows begin to be drawn.

    Raises:
        TypeError: where a loader takes each for one row.
    """
    if not enabled():
        return
    for module, name, _ in frames():
        if module.startswith("flowdata."):
            continue
        if module.startswith(_SAMPLERS) and "BatchSampler" in name:
            raise TypeError(
                "a FlowPackSampler draws packs, lists of rows, and the DataLoader was given it as "
                "sampler=, which draws single rows: use DataLoader(data, batch_sampler=..., "
                "collate_fn=flowdata.pack_rows)"
            )
        return


class PacksGuard:
    """Looks, once in a process, at the collate function of the loader that reads packs."""

    def __init__(self) -> None:
        self._has_looked = False

    def on_items(self) -> None:
        """Packs are read.

        Raises:
            ValueError: where batches cannot be made of them, or would be taken for single samples.
        """
        if self._has_looked:
            return
        self._has_looked = True
        items, collators = _collators()
        for collate in collators:
            name, module = type(collate).__name__, type(collate).__module__
            if items > 1 and getattr(collate, "__name__", name) in _STACKING:
                raise ValueError(
                    f"packs are of different lengths, so batches of {items} cannot be stacked: "
                    "give the loader collate_fn=flowdata.PackCollator(pad_token_id)"
                )
            kept = getattr(collate, "signature_columns", None)
            if kept is not None and _POSITIONS not in kept:
                raise ValueError(
                    f"{name} takes position_ids out of the packs, by which a model tells their "
                    "samples apart: use TrainingArguments(remove_unused_columns=False)"
                )
            if name.startswith(_MIXING) and module.startswith(_LIBRARIES):
                raise ValueError(
                    f"{name} takes each pack for one sample, so that its samples would be seen by "
                    "one another: use flowdata.PackCollator(pad_token_id) in its place, or make "
                    "packs of rows by FlowPackSampler"
                )


def _collators() -> tuple[int, list[Any]]:
    """Items of the batch that a loader fetches, its collate function, and those inside it."""
    items, found = 0, list[Any]()
    # What torch has renamed is not found.
    with contextlib.suppress(Exception):
        fetch: Any = find_fetch() if enabled() else None
        items, collate = fetch.items, fetch.reader.collate_fn
        while collate is not None and len(found) < _MOST:
            found.append(collate)
            inside = (getattr(collate, name, None) for name in _INNER)
            collate = next((each for each in inside if callable(each)), None)
    return items, found
