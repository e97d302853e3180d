"""Pictures: crops of natural photographs that come with a game for children, as one array."""

import io
import re
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from assets import CACHE, Archive, unpacked

SIZE = 128
GCOMPRIS = Archive(
    "gcompris-qt-data=3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"
)
# Of its activities, those with photographs: monuments, musicians, animals, landscapes, things.
ACTIVITIES = (
    "explore_monuments",
    "explore_world_music",
    "explore_world_animals",
    "explore_farm_animals",
    "erase",
    "categorization",
)
_BEGINS = re.compile(b"RIFF....WEBPVP|\xff\xd8\xff", re.DOTALL)


def photographs() -> np.ndarray[Any, Any]:
    """Two crops of each of 239 photographs: uint8 of shape (478, 3, 128, 128).

    From Debian's gcompris-qt-data (GPL-3+, CC-BY-SA and public domain, see its copyright file): the
    largest square in the middle, and a square of three quarters of it in a corner.
    """
    file = CACHE / "gcompris-qt-data" / f"photographs-{SIZE}.npz"
    if not file.exists():
        file.parent.mkdir(exist_ok=True, parents=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            crops = np.stack(list(_crops(unpacked(GCOMPRIS, Path(folder)))))
        unfinished = file.with_suffix(".part.npz")
        np.savez_compressed(unfinished, crops=crops)
        unfinished.rename(file)
    found: np.ndarray[Any, Any] = np.load(file)["crops"]
    return found


def _crops(package: Path) -> Iterator[np.ndarray[Any, Any]]:
    """Squares of the photographs of a package, one after the other."""
    number = 0
    for activity in ACTIVITIES:
        file = package / "usr/share/gcompris-qt/rcc" / f"{activity}.rcc"
        for picture in _pictures(file.read_bytes()):
            side = min(picture.size)
            if picture.mode != "RGB" or side < 200:  # What is drawn has a transparent ground.
                continue
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            part = side * 3 // 4
            # Each corner in turn.
            across, down = (
                (length - part) * (number >> bit & 1) for bit, length in enumerate(picture.size)
            )
            number += 1
            for at, down_at, length in ((left, top, side), (across, down, part)):
                box = (at, down_at, at + length, down_at + length)
                square = picture.resize((SIZE, SIZE), box=box, resample=2, reducing_gap=3.0)
                yield np.asarray(square).transpose(2, 0, 1)


def _pictures(resources: bytes) -> Iterator[Any]:
    """The pictures in a resource file of Qt, in which each is stored behind its length."""
    from PIL import Image

    for match in _BEGINS.finditer(resources):
        begin = match.start()
        (length,) = struct.unpack(">I", resources[begin - 4 : begin])
        try:
            picture = Image.open(io.BytesIO(resources[begin : begin + length]))
            picture.load()
        except OSError:
            continue  # These bytes were part of something else.
        yield picture
