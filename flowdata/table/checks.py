"""Whether a table belongs to a data set, and to a model."""

from typing import Any

from torch import nn

from flowdata.errors import MismatchError, warn
from flowdata.table.fingerprint import dataset_fingerprint, model_fingerprint
from flowdata.table.provenance import Provenance


def check_dataset(provenance: Provenance, dataset: Any) -> None:
    """Refuse a data set of another length or other content, see `LossTable.check`."""
    check_length(dataset, provenance.rows)
    expected = provenance.data_fingerprint
    if expected is None:
        return
    found = dataset_fingerprint(dataset)
    if found is None:
        warn(
            "only the length of the data set was checked against the loss table: its samples "
            "differ from read to read (random augmentation?) or cannot be hashed"
        )
    elif found != expected:
        raise MismatchError(
            f"the table was made for a data set with fingerprint {expected}, this one of the "
            f"same length has {found}: rows were changed or reordered. Score this data set"
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
