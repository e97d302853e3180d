"""Weights in a Parquet file, from which the same draws are made, whatever they were made by."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flowdata.core.groups import Groups
from flowdata.core.made_weights import Made, of_weights
from flowdata.core.relative_weights import Given, OfLogarithms, OfLosses
from flowdata.core.weights import FlowWeights
from flowdata.errors import MismatchError, TableFileError
from flowdata.files import reason_of
from flowdata.objects import without_secrets
from flowdata.table.loss_table import LossTable
from flowdata.table.parquet import Kind, ParquetColumns, open_parquet
from flowdata.table.stored_table import METADATA_KEY as TABLE_KEY
from flowdata.table.writing import write_parquet

METADATA_KEY = b"flowdata.weights"

_VERSION = 1
_WHAT = "file of weights"
_REMEDY = "save the weights again"
_SOURCE, _GROUP = "source", "group"
# The kinds of relative weights, by what their source is.
_KINDS = {OfLosses: "losses", OfLogarithms: "logarithms", Given: "weights"}
_OPTIONS: Mapping[type, tuple[str, ...]] = {
    OfLosses: ("lowest", "tau", "alpha", "has_invalid"),
    OfLogarithms: ("alpha",),
    Given: (),
}


def save_weights(weights: FlowWeights, path: str | PathLike[str]) -> None:
    """Write weights to a file, whatever made them: a function, a product, groups, a mix.

    Of it `load_weights` makes weights that draw the same rows, with the same identity in saved
    states; so ``flowdata export --weights`` and ``replay --weights`` do what the run did.

    Args:
        weights: such as ``table.weights(function=...)``.
        path: a file, or a URL that fsspec opens.

    Raises:
        FileExistsError: where a loss table would be written over.
        TableFileError: where it cannot be written.
        TypeError: for what are no FlowWeights.
        ValueError: for powers of given weights, whose last bits depend on the processor.
    """
    if not isinstance(weights, FlowWeights):
        raise TypeError(
            f"FlowWeights are saved, got {type(weights).__name__}: FlowWeights.from_weights(array) "
            "makes them of numbers"
        )
    made = weights.made
    if isinstance(made.relative, Given) and made.exponent != 1.0:
        raise ValueError(
            "a power of given weights is not saved: save the weights, and give alpha= to the plan"
        )
    import pyarrow as pa

    _require_no_table(path)
    columns: dict[str, Any] = {_SOURCE: lambda rows: pa.array(made.source[rows])}
    if (groups := made.groups) is not None:
        columns[_GROUP] = lambda rows: pa.array(groups.codes[rows].astype(np.int32))
    content = {
        "version": _VERSION,
        "kind": _KINDS[type(made.relative)],
        "dtype": made.source.dtype.name,
        "temperature": made.temperature,
        "exponent": made.exponent,
        "log_max": made.log_max,
        "how": made.how,
        "names": None if groups is None else groups.names,
        "shared": made.shared,
        "normalize": weights.normalize,
        "fingerprint": weights.fingerprint,
        "losses": None if made.losses is None else _hash_of(made.losses[:]),
        **_options(made.relative),
    }
    metadata = {METADATA_KEY: json.dumps(content).encode()}
    try:
        write_parquet(path, _WHAT, len(weights), columns, metadata)
    except OSError as error:
        raise TableFileError(
            f"cannot write the weights {without_secrets(str(path))}: {reason_of(error)}"
        ) from error


def load_weights(path: str | PathLike[str], table: LossTable | None = None) -> FlowWeights:
    """The weights of a file that `save_weights` wrote.

    Args:
        path: the file, or its URL.
        table: the loss table of the rows. That the weights were made of its losses is made sure
            of, but for weights that were given as numbers.

    Raises:
        MismatchError: for weights of another table.
        TableFileError: for a file that is missing, damaged, or none of weights.
    """
    with open_parquet(path, what=_WHAT, remedy=_REMEDY) as file:
        content = file.json(METADATA_KEY)
        if not content:
            raise TableFileError(
                f"{file.path} is no {_WHAT}: flowdata.save_weights(weights, path) writes one"
            )
        if content.get("version") != _VERSION:
            raise TableFileError(
                f"{file.path} has version {content.get('version')!r}, and this flowdata reads "
                f"{_VERSION}"
            )
        weights = FlowWeights(_made_of(file, content), normalize=content["normalize"])
        if weights.fingerprint != content["fingerprint"]:
            raise file.damaged("its weights are not those that were saved")
        known = content.get("losses")
        if table is not None and known not in (None, _hash_of(table.losses)):
            raise MismatchError(
                f"{file.path} has weights of another loss table: give that of whose losses they "
                "were made, or make them anew"
            )
        return weights


def _hash_of(losses: NDArray[Any]) -> str:
    # As a table keeps them.
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(losses, dtype=np.float32).data)


def _require_no_table(path: str | PathLike[str]) -> None:
    is_table = False
    # What cannot be read is none.
    with contextlib.suppress(TableFileError), open_parquet(path, what=_WHAT, remedy="") as file:
        is_table = TABLE_KEY in file.metadata
    if is_table:
        raise FileExistsError(
            f"{without_secrets(str(path))} is a loss table, and weights would be written over it: "
            "name another file"
        )


def _options(relative: Any) -> dict[str, Any]:
    return {name: getattr(relative, name) for name in _OPTIONS[type(relative)]}


def _made_of(file: ParquetColumns, content: Mapping[str, Any]) -> Made:
    kind, names = content["kind"], content["names"]
    kinds = {_SOURCE: {"float32": Kind.FLOAT32, "float64": Kind.FLOAT64}[content["dtype"]]}
    if names is not None:
        kinds[_GROUP] = Kind.INT32
    columns = file.read(kinds)
    source: NDArray[Any] = columns[_SOURCE].to_numpy()
    source.flags.writeable = False
    if kind == "weights":
        made = of_weights(source)
    elif kind == "logarithms":
        made = Made(OfLogarithms(source, content["alpha"]), content["log_max"], source)
    elif kind == "losses":
        options = {name: content[name] for name in _OPTIONS[OfLosses]}
        made = Made(OfLosses(source, **options), content["log_max"], source, losses=source)
    else:
        raise ValueError(f"weights of {kind!r}")
    groups = None
    if names is not None:
        groups = _groups_of(columns[_GROUP].to_numpy(), tuple(names))
    return replace(
        made,
        temperature=content["temperature"],
        exponent=content["exponent"],
        how=content["how"],
        groups=groups,
        shared=content["shared"],
    )


def _groups_of(codes: NDArray[Any], names: tuple[Any, ...]) -> Groups:
    if codes.size and not 0 <= codes.min() <= codes.max() < len(names):
        raise ValueError(f"a group that is none of {len(names)}")
    small = codes.astype(np.min_scalar_type(max(len(names) - 1, 0)))
    small.flags.writeable = False
    return Groups(small, names)
