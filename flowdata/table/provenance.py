"""Provenance: which model, data and loss a loss table comes from."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from torch import nn

from flowdata.table.content import content_hash
from flowdata.table.fingerprint import dataset_fingerprint, model_fingerprint, transform_fingerprint
from flowdata.version import __version__

# Increased when a table of this version would be misread by an older one.
SCHEMA_VERSION = 1

CONTENT = "content"
"""Of an identity, what is compared where both have it, see `require_same_pass`."""

LENGTHS = "lengths alone"
"""The ``loss`` of a table that has lengths, and no losses: each of them is NaN. No function has
this name."""


@dataclass(frozen=True)
class Provenance:
    """Where the losses came from; None where it is not known.

    Attributes:
        rows: length of the data set.
        loss: name of the loss.
        model: name of the model.
        model_hash: hash of its parameters and buffers.
        adapters: whether a PEFT model was scored with its adapters.
        data_fingerprint: hash of some rows of the data set, see `LossTable.check`.
        transform: hash of what the transform of a ``datasets.Dataset`` made of its rows.
        dtype: floating-point type the model computed in.
        options: options of the loss, as JSON.
        truncated: samples that were cut to the longest length allowed.
        key: column of the data set that the keys of the rows are from.
        first_rows: hashes of the first rows of a stream, by which it is known again.
        content: hash of all rows of the data set, where `content_hash` makes one.
        parts: of a table made of others, where its rows are from, as JSON: of some rows of one, or
            of several in a row.
        created: time of the scoring pass, UTC, ISO 8601.
        flowdata: version that wrote the table.
        schema: version of the file format.
    """

    rows: int
    loss: str | None = None
    model: str | None = None
    model_hash: str | None = None
    adapters: bool = False
    data_fingerprint: str | None = None
    transform: str | None = None
    dtype: str | None = None
    options: str | None = None
    truncated: int | None = None
    key: str | None = None
    first_rows: str | None = None
    content: str | None = None
    parts: str | None = None
    created: str | None = None
    flowdata: str | None = None
    schema: int = SCHEMA_VERSION

    @classmethod
    def now(
        cls,
        rows: int,
        *,
        dataset: Any = None,
        model: nn.Module | None = None,
        adapters: bool = False,
        model_name: str | None = None,
        once: Callable[[Callable[[], str | None]], str | None] = lambda make: make(),
        **known: Any,
    ) -> "Provenance":
        """Provenance of losses made now, with the hashes of data set and model where given.

        ``once`` calls a function that goes through all rows: on one of the ranks that share them.
        """
        fingerprint = None if dataset is None else dataset_fingerprint(dataset)
        content = None
        if dataset is not None:
            # Rows that are others when they are read again have no hash.
            content = once(lambda: None if fingerprint is None else content_hash(dataset))
        return cls(
            rows=rows,
            model_hash=None if model is None else model_fingerprint(model, adapters=adapters),
            data_fingerprint=fingerprint,
            transform=None if dataset is None else transform_fingerprint(dataset),
            content=content,
            model=model_name,
            adapters=adapters,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            flowdata=__version__,
            **known,
        )

    def with_truncated(self, samples: int | None) -> "Provenance":
        """The same, with the number of samples that were cut, where it is known."""
        return replace(self, truncated=samples)

    @property
    def given_options(self) -> dict[str, Any]:
        """The options of the loss by name; none where they cannot be read."""
        try:
            found = json.loads(self.options or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def to_json(self) -> str:
        """All fields, as a file has them."""
        # Without fields that earlier versions did not have, where there is nothing to say.
        newer = ("key", "first_rows", "content", "parts")
        left_out = [name for name in newer if getattr(self, name) is None]
        known = {name: value for name, value in asdict(self).items() if name not in left_out}
        return json.dumps(known)

    def identity(self) -> dict[str, Any]:
        """What makes two scoring passes the same one."""
        # Not the model's name, which is a path as often as not, nor times and versions.
        names = (
            *("rows", "loss", "dtype", "model_hash", "adapters"),
            *("data_fingerprint", "transform"),
        )
        options = {} if self.options is None else json.loads(self.options)
        known = {name: getattr(self, name) for name in names} | {"options": options}
        # Not where nothing is known of it, as in earlier versions.
        return known if self.content is None else known | {CONTENT: self.content}
