"""What the scoring benchmark scores: real texts of mixed lengths, and a model to score them."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LONGEST = 384
"""Longer texts are left out."""
_SENTENCE = ". "


def texts(file: Path | None) -> list[dict[str, str]]:
    """Prompts and responses, in a random order, the same in every process.

    A quarter each are turns of chats, maths questions, paragraphs of novels (of which the first
    sentence is the prompt) and functions of the standard library; or those of a file.
    """
    if file is not None:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    from texts import functions, maths, paragraphs, templates, turns

    code = functions()
    sources: list[Iterator[Mapping[str, str]]] = [
        (_row(said, answer) for said, answer in _mixed(turns())),
        (_row(each.prompt, each.answer) for each in maths(templates(), len(code), seed=0)),
        (_row(*each.split(_SENTENCE, 1)) for each in _mixed(paragraphs()) if _SENTENCE in each),
        iter(_mixed(code)),
    ]
    return [dict(row) for some in zip(*sources, strict=False) for row in some]


def _row(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": f"{prompt} ", "response": response}


def _mixed(items: Any) -> list[Any]:
    order = np.random.default_rng(0).permutation(len(items))
    return [items[place] for place in order.tolist()]


def model_folder(given: Path | None) -> Path:
    """The folder of a model and its tokenizer: the given one, or SmolLM2-135M-Instruct."""
    if given is not None:
        return given
    from assets import smollm2

    return smollm2()


def load(folder: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """The model, with random parameters where the folder has none, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    kind = getattr(torch, dtype)
    if any(folder.glob("*.safetensors")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind)
    else:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=kind)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def export(folder: Path, source: Path) -> None:
    """Write texts, configuration and tokenizer for a machine that can fetch none of them.

    Speed does not depend on what the parameters are: there they are random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    lines = [json.dumps(row) for row in texts(None)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
