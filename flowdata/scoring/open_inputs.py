"""Models and data sets by the names a user types."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from flowdata.errors import FlowDataError
from flowdata.scoring.models.pretrained import load_config, load_tokenizer, load_whole

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def open_data(name: str, split: str = "train") -> Any:
    """A ``datasets.Dataset`` from a file, a folder of ``save_to_disk``, or the hub.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a file of an unknown kind or that cannot be read, or a split that is not
            there.
    """
    import datasets

    path = Path(name)
    if path.is_file():
        if path.suffix not in _READERS:
            raise ValueError(f"{path}: a data file must be one of {', '.join(_READERS)}")
        return _read_file(path)
    if path.suffix in _READERS:
        raise FileNotFoundError(f"there is no file {path}")
    _require_existing_path(path)
    if path.is_dir() and any(
        (path / mark).exists() for mark in ("state.json", "dataset_dict.json")
    ):
        saved = datasets.load_from_disk(str(path))
        if not isinstance(saved, Mapping):
            return saved
        if split not in saved:
            raise ValueError(f"{path} has the splits {sorted(saved)}, not {split!r}")
        return saved[split]
    return datasets.load_dataset(name, split=split)


def _read_file(path: Path) -> Any:
    import datasets

    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: there is nothing to read")
    kind = _READERS[path.suffix]
    try:
        return datasets.load_dataset(kind, data_files=str(path), split="train")
    except Exception as error:  # Each reader raises its own, wrapped in one of datasets.
        reason = " ".join(str(error.__cause__ or error).split())
        # datasets 5.2, ArrowReader.read: so it calls a split without rows.
        if "corresponds to no data" in reason:
            raise ValueError(f"{path} has no rows: there is nothing to read") from error
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {reason}") from error


def open_model(
    name: str,
    *,
    dtype: str,
    device: str | None,
    local_rank: int,
    as_saved: bool = False,
) -> Any:
    """A model of transformers, on its device.

    It is a causal language model, or, with ``as_saved``, of the class that it was saved as. A GGUF
    file is read through transformers, which turns it into plain floats.

    Raises:
        FlowDataError: for what cannot be loaded, or has not all parameters of the model.
        ModuleNotFoundError: saying what to install.
        ValueError: for an unknown dtype, or a device that is not there.
    """
    transformers = _transformers()
    kind = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if kind != "auto" and not isinstance(kind, torch.dtype):
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}")
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from error
    _require_device(target)
    place, where = _place_of(name)
    if as_saved:
        model = load_whole(_saved_class(transformers, place), place, "a model", dtype=kind)
        return model.to(target)
    model = load_whole(transformers.AutoModelForCausalLM, place, dtype=kind, **where)
    return model.to(target)


def _saved_class(transformers: Any, name: str) -> Any:
    """The class that the configuration of a checkpoint names."""
    config = load_config(transformers.AutoConfig, name)
    named = getattr(config, "architectures", None) or []
    found = [kind for kind in (getattr(transformers, each, None) for each in named) if kind]
    if not found:
        raise FlowDataError(
            f"{name} names no class of transformers in its configuration (architectures: {named}): "
            "score it from Python, flowdata.score(model, data)"
        )
    return found[0]


def open_tokenizer(name: str) -> Any:
    """A tokenizer of transformers: of a folder, of a GGUF file, or of the hub.

    Raises:
        FlowDataError: for what cannot be loaded.
        ModuleNotFoundError: saying what to install.
    """
    kind = _transformers().AutoTokenizer
    place, where = _place_of(name)
    return load_tokenizer(kind, place, **where)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "language models need transformers: pip install 'flowdata[language]'"
        ) from error


def _place_of(name: str) -> tuple[str, dict[str, str]]:
    """The folder or name of a model, and the file in it."""
    # transformers 5.23, from_pretrained takes the folder and the file in it apart.
    path = Path(name)
    if path.suffix == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            raise ModuleNotFoundError("GGUF files need the gguf package: pip install gguf")
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
        return str(path.parent), {"gguf_file": path.name}
    _require_existing_path(path)
    return name, {}


def _require_existing_path(path: Path) -> None:
    """What can be no name on the hub has to be there."""
    if path.is_absolute() and not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")


def _require_device(device: torch.device) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"there is no CUDA device for --device {device}: this PyTorch sees none; leave "
            "--device out to score on the CPU"
        )
