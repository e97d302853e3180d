"""Whether a table belongs to a data set, and to a model."""

from typing import Any

from torch import nn

from flowdata.errors import MismatchError, warn
from flowdata.table.data_columns import run_of
from flowdata.table.fingerprint import dataset_fingerprint, model_fingerprint
from flowdata.table.origins import TAKEN, parts_of, size_of
from flowdata.table.provenance import Provenance


def check_dataset(provenance: Provenance, dataset: Any) -> None:
    """Refuse a data set of another length or other content, see `LossTable.check`."""
    if hasattr(dataset, "iloc"):
        raise TypeError(
            f"a {type(dataset).__name__} has no rows by number: give "
            "datasets.Dataset.from_pandas(frame)"
        )
    check_length(dataset, provenance.rows)
    if provenance.parts is not None:
        _check_parts(parts_of(provenance), dataset)
    elif provenance.data_fingerprint is not None:
        found = dataset_fingerprint(dataset)
        if found is None:
            warn(
                "only the length of the data set was checked against the loss table: its samples "
                "differ from read to read (random augmentation?) or cannot be hashed"
            )
        elif found != provenance.data_fingerprint:
            raise MismatchError(
                "the table was made for a data set with fingerprint "
                f"{provenance.data_fingerprint}, this one of the same length has {found}: rows "
                "were changed or reordered. Score this data set"
            )


def _check_parts(parts: list[dict[str, Any]], dataset: Any) -> None:
    """Check the data of each part that is whole, by what it was recognised by before."""
    unknown, start = 0, 0
    for number, part in enumerate(parts):
        stop, expected = start + size_of(part), part.get("data_fingerprint")
        known = TAKEN not in part and expected is not None
        found = dataset_fingerprint(run_of(dataset, start, stop)) if known else None
        if found is None:
            unknown += stop - start
        elif found != expected:
            raise MismatchError(
                f"rows {start:,} to {stop - 1:,} of the table (part {number} of {len(parts)}) were "
                f"made for a data set with fingerprint {expected}, these rows have {found}: they "
                "were changed, reordered, or given other columns. Put together the data sets of "
                "the tables, in their order"
            )
        start = stop
    if unknown:
        warn(
            f"{unknown:,} of {start:,} rows were not checked against the data set, but by their "
            "number: they are a selection of a table's rows, or of data that cannot be recognised"
        )


def check_model(provenance: Provenance, model: nn.Module) -> None:
    """Refuse a model of other parameters, where it is known which model scored."""
    expected = provenance.model_hash
    if expected is None:
        return
    found = model_fingerprint(model, adapters=provenance.adapters)
    if found != expected:
        raise MismatchError(
            f"the table was scored by a model with hash {expected} "
            f"({provenance.model}), this model has hash {found}: load the "
            "pre-trained weights that scored it, or score again"
        )


def check_length(dataset: Any, rows: int) -> None:
    """Refuse what has another number of rows than there are losses."""
    if dataset is not None and len(dataset) != rows:
        raise MismatchError(
            f"there are {rows:,} losses, but the data set has {len(dataset):,} rows; "
            "score this data set, or pass the one that was scored"
        )
