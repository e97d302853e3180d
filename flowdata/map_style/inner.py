"""The data set inside a FlowDataset: what of it is passed on to loaders and frameworks."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from flowdata.errors import MismatchError, warn

DATASET = "dataset"
"""The key of the inner data set's own state in that of a FlowDataset."""

_PLAIN = frozenset({"builtins", "numpy", "torch", "pandas", "array"})
"""Packages whose containers have attributes that are about the container."""
_COUNTS_ROWS = frozenset({"num_rows", "shape"})
_ABOUT_COLUMNS = frozenset({"classes", "class_to_idx", "column_names", "features"})
_HUGGING_FACE = "datasets"


def fetch_rows(dataset: Any, rows: list[int]) -> Any:
    """Rows by their numbers, as ``__getitems__`` gives them where the data set has it."""
    # datasets.Dataset reads a batch of rows at once many times faster than row by row.
    fetch_all = getattr(dataset, "__getitems__", None)
    if callable(fetch_all):
        return fetch_all(rows)
    return [dataset[row] for row in rows]


def index_rows(dataset: Any, rows: list[int]) -> Any:
    """What the data set gives for a list of rows as its index; a list of items if it takes none.

    ``datasets.Dataset`` gives a dict of columns, ``TensorDataset`` a tuple of tensors.
    """
    if not isinstance(dataset, Sequence):
        try:
            return dataset[rows]
        except TypeError:
            # Its index is one row: if anything else is wrong, the next line says so.
            pass
    return fetch_rows(dataset, rows)


def attribute(dataset: Any, name: str) -> Any:
    """An attribute of the data set, if it is not about rows, which draws are not.

    Raises:
        AttributeError: if it is, or if there is none.
    """
    kind = type(dataset).__name__
    if name.startswith("_") or _package(dataset) in _PLAIN:
        raise AttributeError(f"FlowDataset has no attribute {name!r}")
    value = getattr(dataset, name)
    owner = getattr(value, "__self__", None)
    if owner is not None and owner is dataset:
        if _package(dataset) == _HUGGING_FACE and not name.startswith(("set_", "reset_")):
            raise AttributeError(
                f"{kind}.{name} is about rows, and the items of a FlowDataset are draws: call it "
                f"before, FlowDataset(data.{name}(...), weights), or on flow_dataset.dataset"
            )
        return PassedOn(value, len(dataset))
    if name in _COUNTS_ROWS or (name not in _ABOUT_COLUMNS and _is_by_row(value, len(dataset))):
        raise AttributeError(
            f"{name} of the {kind} goes by row, and the items of a FlowDataset are draws: take "
            f"flow_dataset.dataset.{name}, and the rows of an epoch's draws, flow_dataset.plan[:]"
        )
    return value


def has_attribute(dataset: Any, name: str) -> bool:
    """Whether an attribute that is set belongs to the data set."""
    return not name.startswith("_") and _package(dataset) not in _PLAIN and hasattr(dataset, name)


@dataclass(frozen=True)
class PassedOn:
    """A method of the data set, which must not give its rows away for draws."""

    method: Any
    rows: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it.

        Raises:
            TypeError: when the result is a data set, or goes by row.
        """
        result = self.method(*args, **kwargs)
        dataset = self.method.__self__
        is_data = isinstance(result, (Dataset, Iterator)) or type(result) is type(dataset)
        # What depends on arguments may have any length, such as that of a batch.
        by_row = not args and not kwargs and _is_by_row(result, self.rows)
        if is_data or by_row:
            name = self.method.__name__
            raise TypeError(
                f"{type(dataset).__name__}.{name} gives rows, and the items of a FlowDataset are "
                f"draws: call it before, FlowDataset(data.{name}(...), weights), or on "
                "flow_dataset.dataset"
            )
        return result


def set_epoch_of(dataset: Any, epoch: int) -> None:
    """Tell the data set its epoch, if it has ``set_epoch``."""
    if (set_epoch := _method(dataset, "set_epoch")) is not None:
        set_epoch(epoch)


def state_of(dataset: Any) -> dict[str, Any]:
    """The state of the data set under its key; nothing if it has none."""
    if _is_stateful(dataset):
        return {DATASET: dataset.state_dict()}
    return {}


def load_state_of(dataset: Any, state: Mapping[str, Any], *, owner: str) -> None:
    """Load what `state_of` has saved.

    Args:
        dataset: that the state may be of.
        state: of the data set of draws around it.
        owner: the name of that one's class, for errors.

    Raises:
        MismatchError: when there is a state for a data set that loads none.
    """
    if _is_stateful(dataset):
        if DATASET in state:
            dataset.load_state_dict(state[DATASET])
        else:
            warn(
                f"the saved {owner} state has none of the {type(dataset).__name__} in it, "
                "which goes on as it is: what of it is random may come out otherwise"
            )
    elif DATASET in state:
        raise MismatchError(
            f"the saved {owner} state holds one of the data set in it, but "
            f"{type(dataset).__name__} has no load_state_dict: build {owner} around the data "
            "set of the run that was saved"
        )


def _is_stateful(dataset: Any) -> bool:
    return None not in (_method(dataset, "state_dict"), _method(dataset, "load_state_dict"))


def _method(dataset: Any, name: str) -> Any:
    found = getattr(dataset, name, None)
    return found if callable(found) else None


def _package(dataset: Any) -> str:
    kind = type(dataset)
    # torch's own data sets have nothing that is not of their rows, save what they wrap.
    package = kind.__module__.partition(".")[0]
    return "" if issubclass(kind, Dataset) else package


def _is_by_row(value: Any, rows: int) -> bool:
    """Whether a value has as many entries as there are rows."""
    if isinstance(value, (str, bytes, type)):
        return False
    # An array without dimensions, and many other things, have no length.
    with contextlib.suppress(Exception):
        return len(value) == rows
    return False
