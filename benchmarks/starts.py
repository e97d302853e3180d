"""Starts: on which machines, and with what code, the records of a benchmark were measured."""

import json
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from measure import Machine
from records import Record, Records
from sources import Hashes, sources_of

START = "machine"
ASIDE = (START, "error")
"""Kinds of records that are no results."""


def begin(records: Records, script: str, device: str, **more: Any) -> None:
    """Keep where and with what the records that follow are measured."""
    on = {"device": device, "began": time.time()}
    if device.startswith("cuda"):
        on["gpu"] = torch.cuda.get_device_name(device)
    start = {"kind": START, **vars(Machine.here()), **on, **more, "sources": sources_of(script)}
    records.append(start)


def check_settings(records: Records, settings: Record) -> None:
    """Refuse records of other settings; one that is not told there is from before it was kept.

    Raises:
        ValueError: naming what differs.
    """
    ours = json.loads(json.dumps(settings))
    for start in records.of(START):
        theirs = start.get("settings", ours)
        other = sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])
        if other:
            raise ValueError(
                f"{records.file} has results of other settings ({', '.join(other)}), which shall "
                "not mix with these: give another --output"
            )


def machine_of(records: Records) -> Machine:
    """That of the first start."""
    first = next(records.of(START))
    return Machine(**{each.name: first[each.name] for each in fields(Machine)})


def sources_known(records: Records) -> Hashes:
    """Hashes of the sources of all starts; where they differ there is none."""
    return merged([each["sources"] for each in records.of(START)])


def merged(starts: Sequence[Hashes]) -> Hashes:
    """Hashes of several starts, as one."""
    return {
        file: known if all(each.get(file) == known for each in starts) else "several"
        for each in starts
        for file, known in each.items()
    }


def told_of(records: Records) -> str:
    """Where the results were measured, and how many on each machine."""
    counts: dict[str, int] = {}
    place = ""
    for each in records:
        if each["kind"] == START:
            place = _told(each)
        elif each["kind"] not in ASIDE:
            counts[place] = counts.get(place, 0) + 1
    changed = "several" in sources_known(records).values()
    code = "Between starts the code changed.\n" if changed else ""
    if len(counts) == 1:
        return f"Measured on: {next(iter(counts))}.\n{code}"
    told = [f"- {count:,} results: {on}\n" for on, count in counts.items()]
    return f"Measured on, in this order:\n\n{''.join(told)}\n{code}"


def _told(start: Record) -> str:
    libraries = ", ".join(
        f"{name} {start[name]}" for name in ("torch", "transformers") if name in start
    )
    return (
        f"{start.get('gpu', start['cpu'])}, {start['cores']} cores of a processor, Python "
        f"{start['python']}, {libraries}{start.get('note', '')}"
    )
