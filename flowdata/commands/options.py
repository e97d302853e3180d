"""What the command line takes: options that commands share, and the values that these may have."""

import argparse
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flowdata.core.temperature import Temperature, resolve_temperature
from flowdata.errors import TableFileError
from flowdata.files import Place, local_path, place_of


class Commands(Protocol):
    """What `argparse.ArgumentParser.add_subparsers` gives; its class has no public name."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser:
        """A parser of the arguments of one command."""
        ...


class Options(Protocol):
    """A parser, or a group of its options; what they share has no public name."""

    def add_argument(self, *names: str, **more: Any) -> argparse.Action:
        """One more option."""
        ...


def path_of(text: str) -> Path:
    """A path of this machine."""
    return _local(text, "a path of this machine")


def name_of(text: str) -> str:
    """A path of this machine, or a name on the hub."""
    _local(text, "a path of this machine, or a name on the hub,")
    return text


def _local(text: str, what: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError(f"{what.rstrip(',')} is needed, got nothing")
    try:
        return local_path(text, what)
    except TableFileError as error:
        raise argparse.ArgumentTypeError(
            f"{text} is a URL: give {what} and copy the file between there and the object store"
        ) from error


def table_of(text: str) -> Place:
    """A path of this machine, or a URL that fsspec opens."""
    if not text:
        return path_of(text)
    try:
        return place_of(text, "loss table")
    except TableFileError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def new_table_of(text: str) -> Place:
    """A path or URL to write a loss table to: Parquet, under no name of another format."""
    if Path(text).suffix.lower() in (".csv", ".tsv", ".json", ".jsonl"):
        raise argparse.ArgumentTypeError(f"a loss table is Parquet: give {Path(text).stem}.parquet")
    return table_of(text)


def positive(text: str) -> int:
    """A whole number above 0."""
    return _at_least(1, text)


def non_negative(text: str) -> int:
    """A whole number of 0 or more."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(
            f"a whole number of at least {least} is needed, got {text}"
        )
    return number


def seconds(text: str) -> float:
    """A number of seconds above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"a number of seconds above 0 is needed, got {text}")
    return number


def temperature(text: str) -> Temperature:
    """A number, or a name."""
    # A number, or a name; what the name may be is for the function that reads it to say.
    try:
        found: Temperature = float(text)
    except ValueError:
        found = text
    try:
        resolve_temperature(np.ones(1), found)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return found


def add_temperature(command: Options) -> None:
    """The option that names a temperature."""
    command.add_argument(
        "--temperature",
        type=temperature,
        default="median",
        metavar="TAU",
        help="median (default), mean, quantile:Q with Q between 0 and 1, or a number",
    )


def add_data(command: argparse.ArgumentParser, *, required: bool, several: bool = False) -> None:
    """Options that name a data set, or several in a row."""
    command.add_argument(
        "--data",
        type=name_of,
        required=required,
        nargs="+" if several else None,
        help=("one, or several in a row: " if several else "")
        + "a .jsonl, .json, .csv or .parquet file, a saved datasets folder, or a hub name",
    )
    command.add_argument("--split", help="split of the data, where it has some (default train)")


def add_columns(command: argparse.ArgumentParser, otherwise: str) -> "argparse._ArgumentGroup":
    """Options that name columns of text, and their group."""
    columns = command.add_argument_group(
        "columns", f"without any of these, rows must have {otherwise}"
    )
    columns.add_argument("--prompt", metavar="COLUMN", help="text or turns, not scored")
    columns.add_argument("--response", metavar="COLUMN", help="text or turns, scored")
    columns.add_argument("--messages", metavar="COLUMN", help="chats; the assistant is scored")
    columns.add_argument("--text", metavar="COLUMN", help="plain text, all of it scored")
    return columns


def open_data(options: argparse.Namespace) -> Any:
    """The data set that `add_data` asks for."""
    if isinstance(options.data, str):
        return _opened(options.data, options.split)
    parts = [_opened(name, options.split) for name in options.data]
    if len(parts) == 1:
        return parts[0]
    import datasets

    try:
        return datasets.concatenate_datasets(parts)
    except ValueError as error:  # Of columns that have two types.
        raise ValueError(f"{' and '.join(options.data)} are not put in a row: {error}") from error


def _opened(data: str, split: str | None) -> Any:
    from flowdata.scoring.open_inputs import open_data as opened

    path = Path(data)
    if split is not None and (path.is_file() or (path / "state.json").exists()):
        raise ValueError(f"{path} has no splits: leave --split out")
    return opened(data, split or "train")


def require_place(path: Place) -> None:
    """The folder of a file that will be written; better missed now than after the work."""
    if not isinstance(path, Path):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} into")
