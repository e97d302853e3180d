"""What a file of draws was made of, in a file beside it, and whether all of that is still so."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import xxhash

from flowdata.data_files.opening import data_paths, require_other
from flowdata.errors import DataFileError, MismatchError
from flowdata.files import local_path, replacing
from flowdata.version import __version__

SUFFIX = ".manifest.json"

_VERSION, _SEVERAL_FILES = 2, 2
_BLOCK = 1 << 24
_PIECE = 1 << 20
_MOST_SHOWN = 3
_BEGIN = b'{\n "manifest": '
_REMEDY = "export the draws anew"


def manifest_path(output: Path) -> Path:
    """Where the manifest of a file is."""
    return output.with_name(output.name + SUFFIX)


def describe_file(path: Path, beside: Path, content: Path | None = None) -> dict[str, Any]:
    """Size and hashes of a file: of all of it, and of each block, to say where it changed.

    Args:
        path: its name.
        beside: the file whose manifest it is for.
        content: where its content is now, if not under its name.
    """
    whole = xxhash.xxh3_128()
    blocks, size = _digests(path if content is None else content, _BLOCK, whole)
    return {
        "path": Path(os.path.relpath(path, beside.parent)).as_posix(),
        "bytes": size,
        "xxh3_128": whole.hexdigest(),
        "bytes_of_block": _BLOCK,
        "xxh3_64_of_blocks": blocks,
    }


def require_replaceable(output: Path, *inputs: Any) -> None:
    """Make sure that the manifest of a file would take the place of none but a manifest.

    Raises:
        DataFileError: for another file of its name.
    """
    path = manifest_path(output)
    require_other(path, *inputs)
    if not path.exists():
        return
    with path.open("rb") as file:
        found = file.read(len(_BEGIN))
    # One that is damaged is one.
    if found not in (_BEGIN, b""):
        raise DataFileError(
            f"{path} is no manifest of draws, and that of {output.name} would be written over it: "
            "name another output"
        )


def write_manifest(output: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write the manifest of a file, and return all of it."""
    version = _SEVERAL_FILES if isinstance(content["files"]["data"], list) else 1
    whole = {"manifest": version, "flowdata": __version__, **content}
    # Options that were given as numbers of numpy are numbers.
    whole = dict(json.loads(json.dumps(whole, default=lambda value: value.item())))
    whole["checksum"] = _checksum(whole)
    with replacing(manifest_path(output)) as temporary:
        temporary.write_text(_text(whole), encoding="utf-8")
    return whole


def verify_file(
    output: str | PathLike[str],
    *,
    data: str | PathLike[str] | Iterable[str | PathLike[str]] | None = None,
    table: str | PathLike[str] | None = None,
    output_alone: bool = False,
) -> dict[str, Any]:
    """Compare a file of draws, and what it was made of, with its manifest, which is returned.

    Args:
        output: the file that `export_file` wrote, with its manifest beside it.
        data, table: where these are, if not where they were, seen from the file.
        output_alone: leave data and table out, where they are not on this machine.

    Raises:
        DataFileError: saying which file differs, and in which of its bytes; and for a manifest
            that is missing, or was changed itself.
    """
    place = local_path(output, "file of draws")
    manifest = _read(manifest_path(place))
    files = manifest["files"]
    wrong = list(_wrong("output", place, files["output"]))
    if not output_alone:
        for name, given in (("data", data), ("table", table)):
            for path, known in _expected(name, given, files.get(name), place.parent):
                wrong += _wrong(name, path, known)
    if wrong:
        raise DataFileError("; ".join(wrong))
    return manifest


def _expected(
    name: str, given: Any, known: Any, folder: Path
) -> Iterator[tuple[Path, Mapping[str, Any] | None]]:
    """The files of a manifest, one or several of a kind, and where each is to be."""
    described = known if isinstance(known, list) else [known]
    if given is None:
        for each in described if known is not None else ():
            yield Path(os.path.normpath(folder / each["path"])), each
        return
    several = [given] if isinstance(given, str | PathLike) else given
    paths = data_paths(several) if len(described) > 1 else [local_path(p, name) for p in several]
    if len(paths) != len(described):
        raise MismatchError(
            f"the draws were made of {len(described)} data files, and {len(paths)} are given: give "
            "all of them, in the order that they had"
        )
    yield from zip(paths, described, strict=True)


def _wrong(name: str, path: Path, expected: Mapping[str, Any] | None) -> Iterator[str]:
    what = {"output": "the file of draws", "data": "the data", "table": "the loss table"}[name]
    if expected is None:
        raise MismatchError(f"the draws were made without a file of {what}: leave {name} out")
    if not path.is_file():
        missing = f"there is no file {path}, {what}"
        also = (
            ""
            if name == "output"
            else ": say where it is, or check the draws alone by output_alone=True"
        )
        yield f"{missing}{also}"
        return
    size = path.stat().st_size
    if size != expected["bytes"]:
        yield f"{path}, {what}, has {size:,} bytes, not the {expected['bytes']:,} of its manifest"
    length, digests = expected["bytes_of_block"], expected["xxh3_64_of_blocks"]
    found, _ = _digests(path, length)
    changed = [
        f"{block * length:,} to {min((block + 1) * length, size) - 1:,}"
        for block, (digest, known) in enumerate(zip(found, digests, strict=False))
        if digest != known
    ]
    if changed:
        more = ", ..." if len(changed) > _MOST_SHOWN else ""
        shown = ", ".join(changed[:_MOST_SHOWN])
        yield f"{path}, {what}, was changed, in bytes {shown}{more}"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataFileError(
            f"there is no manifest {path}: flowdata export writes it beside the file of draws"
        )
    text = path.read_bytes()
    try:
        found = json.loads(text)
        version = found["manifest"]
        if type(version) is int and version > _VERSION:
            raise DataFileError(
                f"{path} has version {version}, and this flowdata reads up to {_VERSION}: verify "
                "with the flowdata that wrote it"
            )
        sound = found["checksum"] == _checksum(found) and text == _text(found).encode()
    except DataFileError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataFileError(f"{path} is no manifest of draws, or damaged: {_REMEDY}") from error
    if not sound:
        raise DataFileError(f"{path}, the manifest itself, was changed: {_REMEDY}")
    manifest: dict[str, Any] = found
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in manifest.items() if name != "checksum"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _text(manifest: Mapping[str, Any]) -> str:
    return f"{json.dumps(manifest, indent=1)}\n"


def _digests(path: Path, length: int, whole: Any = None) -> tuple[list[str], int]:
    """A hash of each block of a file, and its size; ``whole`` is given all of it."""
    found: list[str] = []
    size = 0
    with path.open("rb") as file:
        while piece := file.read(min(_PIECE, length - size % length)):
            if size % length == 0:
                block = xxhash.xxh3_64()
                found.append("")
            block.update(piece)
            size += len(piece)
            found[-1] = block.hexdigest()
            if whole is not None:
                whole.update(piece)
    return found, size
