"""Models and data sets by the names a user types."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def open_data(name: str, split: str = "train") -> Any:
    """A ``datasets.Dataset`` from a file, a folder of ``save_to_disk``, or the hub.

    Raises:
        ValueError: for a file of an unknown kind, or a split that is not there.
    """
    import datasets

    path = Path(name)
    if path.is_file():
        if path.suffix not in _READERS:
            raise ValueError(f"{path}: a data file must be one of {', '.join(_READERS)}")
        reader = _READERS[path.suffix]
        return datasets.load_dataset(reader, data_files=str(path), split="train")
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


def open_model(
    name: str, *, tokenizer: str | None, dtype: str, device: str | None, local_rank: int
) -> tuple[Any, Any]:
    """A causal language model of transformers, on its device, and its tokenizer.

    A GGUF file is read through transformers, which turns it into plain floats.

    Raises:
        ModuleNotFoundError: saying which extra to install.
        ValueError: for an unknown dtype.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "language models need transformers: pip install 'flowdata[language]'"
        ) from error
    kind = "auto" if dtype == "auto" else getattr(torch, dtype, None)
    if kind != "auto" and not isinstance(kind, torch.dtype):
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}")
    path = Path(name)
    where: dict[str, Any] = {}
    if path.suffix == ".gguf":
        name, where = str(path.parent), {"gguf_file": path.name}
    model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=kind, **where)
    reader = AutoTokenizer.from_pretrained(tokenizer or name, **({} if tokenizer else where))
    if device is None:
        device = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    return model.to(device), reader


def as_text(row: Mapping[str, Any]) -> str:
    """A row as people would read it: its texts, without token ids."""
    hidden = {"input_ids", "labels", "attention_mask"}
    shown = {name: value for name, value in row.items() if name not in hidden} or row
    if len(shown) == 1 and isinstance(value := next(iter(shown.values())), str):
        return value
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in shown.items()
    }
    return "\n".join(f"{name}: {text}" for name, text in texts.items())
