"""Real texts for the language benchmark: novels, maths questions, general knowledge, code."""

import ast
import functools
import importlib.util
import itertools
import re
import struct
import sys
import sysconfig
import types
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import numpy as np
import yaml
from assets import AUSTEN, CHATTERBOT, CHATTERBOT_CHATS, REASONING_GYM, fetch

# Templates whose answers reasoning-gym lists as wrong.
_BROKEN = {32, 35, 37, 61, 63, 65, 74, 76, 77, 79, 86, 87, 90, 97, 98}
_PARAGRAPH = 300
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_SHORTEST, _LONGEST = 40, 140
_MISREAD = 0.05
_CHARSXP, _UTF8_OR_ASCII = 9, (8 | 64) << 12


@dataclass(frozen=True)
class Question:
    """A question with its right answer and, for multiple choice, wrong ones."""

    prompt: str
    answer: str
    wrong: tuple[str, ...] = ()


@functools.cache
def novels() -> tuple[tuple[str, ...], ...]:
    """Paragraphs of each of Jane Austen's novels (janeaustenr, MIT)."""
    return tuple(
        tuple(" ".join(block.split()) for block in "\n".join(lines).split("\n\n"))
        for lines in _novels(fetch(AUSTEN).read_bytes())
    )


@functools.cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of at least 300 characters of all novels."""
    return tuple(part for novel in novels() for part in novel if len(part) >= _PARAGRAPH)


def sentences(numbers: list[int]) -> list[str]:
    """Sentences of 40 to 140 characters of some of the novels."""
    parts = [novels()[number] for number in numbers]
    found = (_SENTENCE_END.split(paragraph) for part in parts for paragraph in part)
    return [each for some in found for each in some if _SHORTEST <= len(each) <= _LONGEST]


def scanned(text: str, random: np.random.Generator) -> str:
    """Text with one letter in twenty misread."""
    misread = random.random(len(text)) < _MISREAD
    letters = random.choice(list(ascii_lowercase), len(text))
    return "".join(
        str(other) if wrong and letter.isalpha() else letter
        for letter, other, wrong in zip(text, letters, misread, strict=True)
    )


def _novels(content: bytes) -> list[list[str]]:
    """Lines of each novel: a zlib-compressed R character vector, after its length."""
    novels = []
    while content:
        decoder = zlib.decompressobj()
        plain = decoder.decompress(content[4:])
        content = decoder.unused_data
        lines, place = [], plain.index(struct.pack(">i", 16)) + 8
        while place < len(plain):
            kind, length = struct.unpack_from(">ii", plain, place)
            if kind & 0xFF != _CHARSXP or not kind & _UTF8_OR_ASCII | (length <= 0):
                break
            lines.append(plain[place + 8 : place + 8 + max(length, 0)].decode())
            place += 8 + max(length, 0)
        novels.append(lines)
    return novels


@functools.cache
def _generators() -> dict[int, Any]:
    """The functions that write a maths question, by the number of their template.

    Only these files of reasoning-gym are loaded; the package imports much more.
    """
    package = types.ModuleType("reasoning_gym")
    sys.modules.setdefault("reasoning_gym", package)
    files = {file.name: file for file in map(fetch, REASONING_GYM)}
    sys.modules["reasoning_gym.utils"] = _module("reasoning_gym.utils", files.pop("utils.py"))
    found = {}
    for name, file in files.items():
        for key, function in vars(_module(name.removesuffix(".py"), file)).items():
            if match := re.fullmatch(r"generate_(\d+)", key):
                found[int(match[1])] = function
    return {number: found[number] for number in sorted(found) if number not in _BROKEN}


def _module(name: str, file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def maths(templates: list[int], count: int, seed: int) -> list[Question]:
    """Questions with worked answers (reasoning-gym's gsm_symbolic, Apache-2.0), all different."""
    random, found = Random(seed), {}
    generators = _generators()
    while len(found) < count:
        made = generators[templates[len(found) % len(templates)]](random, 1.0)
        found[made["question"]] = Question(made["question"], made["metadata"]["answer_cot"])
    return list(found.values())


def templates() -> list[int]:
    """Numbers of the templates of `maths`."""
    return list(_generators())


@functools.cache
def knowledge() -> tuple[Question, ...]:
    """General questions with three wrong answers, of the same topic (chatterbot, BSD)."""
    questions = []
    for package in CHATTERBOT:
        text = fetch(package).read_text()
        turns = [
            (str(turn[0]), str(turn[1]))
            for turn in yaml.safe_load(text)["conversations"]
            if len(turn) == 2 and len(str(turn[1])) < 60
        ]
        random = Random(len(turns))
        for prompt, answer in turns:
            others = sorted({other for _, other in turns} - {answer})
            questions.append(Question(prompt, answer, tuple(random.sample(others, 3))))
    return tuple(questions)


@functools.cache
def turns() -> tuple[tuple[str, str], ...]:
    """What somebody says and what is answered, as often as it is said (chatterbot, BSD)."""
    chats = [
        chat
        for package in CHATTERBOT_CHATS
        for chat in yaml.safe_load(fetch(package).read_text(encoding="utf-8"))["conversations"]
    ]
    return tuple(
        (str(said), str(answer)) for chat in chats for said, answer in itertools.pairwise(chat)
    )


@functools.cache
def functions() -> list[dict[str, str]]:
    """Functions of the standard library with a docstring, in the order of its files."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        lines = source.split("\n")
        for node in _documented(ast.parse(source)):
            found.append(
                {"prompt": f"{ast.get_docstring(node)}\n", "response": _source_of(node, lines)}
            )
    return found


def _source_of(node: ast.FunctionDef, lines: list[str]) -> str:
    """ast.get_source_segment, which splits the whole source anew each time: a minute for all."""
    part = lines[node.lineno - 1 : node.end_lineno]
    part[-1] = part[-1].encode()[: node.end_col_offset].decode()
    part[0] = part[0].encode()[node.col_offset :].decode()
    return "\n".join(part)


def _documented(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """All functions with a docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            yield node


def shuffled(text: str, random: np.random.Generator) -> str:
    """The words of a text in any order."""
    words = text.split()
    return " ".join(words[place] for place in random.permutation(len(words)))
