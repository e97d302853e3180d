"""What `flowdata inspect` says, for programs."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flowdata.report.contents import Contents
from flowdata.report.samples import Sample


def json_report(contents: Contents) -> str:
    """The numbers of a report as a JSON object, without texts."""
    lengths, other, proxy = contents.lengths, contents.other, contents.proxy
    found = {
        "table": asdict(contents.losses.provenance),
        "parts": [asdict(part) for part in contents.parts],
        "proxy": None if proxy is None else dict(zip(("small", "large"), proxy, strict=True)),
        "weights": asdict(contents.summary),
        "quantiles": {f"{place:g}": value for place, value in contents.quantiles.items()},
        "epochs": [asdict(epoch) for epoch in contents.epochs],
        "lengths": None if lengths is None else asdict(lengths),
        "left_out": asdict(contents.left_out),
        "compared": None if other is None else asdict(other[1]),
        "rows_alike_among": _counted_among(contents),
        **{
            section.name: [_row(sample) for sample in section.samples]
            for section in contents.sections
        },
    }
    # Text that no UTF-8 can hold is written as escapes.
    return json.dumps(_plain(found), ensure_ascii=True, indent=2, allow_nan=False)


def _counted_among(contents: Contents) -> str | None:
    if contents.samples is None:
        return None
    return "all rows" if contents.samples.all_read else "the rows that were read"


def _row(sample: Sample) -> dict[str, Any]:
    return {
        "row": sample.row,
        "name": sample.name,
        "loss": sample.loss,
        "expected_draws": sample.expected_draws,
        "rows_alike": sample.rows_alike,
    }


def _plain(value: Any) -> Any:
    """Without numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
