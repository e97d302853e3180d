"""What the command line says: messages in its words, summaries, pipes that close."""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flowdata.errors import FlowDataWarning, InvalidLossError
from flowdata.files import Place
from flowdata.table.loss_table import LossTable

BROKEN_PIPE = 141
"""The status that a shell gives a program whose reader has left: 128 + SIGPIPE."""

_SHOWN_TEXT = 160

# name="value", name='value' or name=value, and the name alone before a value that is left open.
_ARGUMENT = re.compile(r"""\b(\w+)=(?:"([^"]*)"|'([^']*)'|([\w.:+-]*[\w+-]))?""")

# What is said to those who call functions, where the command line has other words.
_PHRASES = (
    (r"\bgive arrange=", "give --strata or --by-length"),
    (r"\bleave arrange out\b", "leave --strata and --by-length out"),
    (r"the same call\b", "the same command"),
    (r"\bcall score again\b", "run the same command again"),
    (r"\bcall again\b", "run the same command again"),
    (r", and give the table its lengths by with_lengths", ", or --table in place of it"),
    (r"choose another output=", "give --output"),
    (
        r"rows need input_ids and labels .*",
        "name columns of text with --prompt and --response, "
        "--messages or --text; without these, rows need input_ids and labels",
    ),
    (
        r"name the columns of one layout: prompt and response, or response alone, or messages, or "
        r"text",
        "give one layout: --prompt and --response, or --response alone, --messages, or --text",
    ),
    (r"; for losses in a file of your own use .*", ""),
    (r", of a table table\.weights\(.*\)", ""),
    (r": parse it into a list of turns, json\.loads", ", not as a list of turns"),
    (
        r"name it messages, or, where it answers a prompt of turns, response",
        "give it as --messages, or, where it answers a prompt of turns, as --response",
    ),
    (
        r"use that of a chat model, set tokenizer\.chat_template, or give prompt and response .*",
        "choose the --tokenizer of a chat model, or give --prompt and --response",
    ),
    (
        r"Load a checkpoint with its head, or fit a new one first, score_probe",
        "choose a checkpoint with its head",
    ),
    (
        r"\. Score with a causal one, or, if it predicts masked tokens, by its own loss: .*",
        ": choose a causal language model",
    ),
    (
        r"\. Score it by its own loss, loss=function\(model, batch\) .*",
        ": choose a causal language model",
    ),
    (
        r" A new head is scored by score_probe; else pass a temperature of your own",
        " flowdata inspect takes another --temperature",
    ),
)


class Speech:
    """Puts messages into the words of one command.

    Args:
        flags: the option that stands for an argument of a function, by name.
    """

    def __init__(self, flags: Mapping[str, str]) -> None:
        self._flags = flags

    @classmethod
    def of(cls, parser: argparse.ArgumentParser) -> "Speech":
        """The words of a command, whose options are named as arguments are."""
        actions = parser._actions  # noqa: SLF001
        return cls(
            {action.dest: action.option_strings[-1] for action in actions if action.option_strings}
        )

    def __call__(self, message: object) -> str:
        """A message on one line, with options in place of arguments."""
        text = " ".join(str(message).split())
        for pattern, words in _PHRASES:
            text = re.sub(pattern, words, text)
        text = _ARGUMENT.sub(self._option, text)
        for name, flag in self._flags.items():
            # A name with an underscore is no word of any language.
            if "_" in name:
                text = re.sub(rf"(?<![\w-]){name}\b", flag, text)
        return re.sub(r"\b(?:pass|give) (?=--)", "give ", text)

    def _option(self, match: re.Match[str]) -> str:
        flag = self._flags.get(match[1])
        if flag is None:
            return match[0]
        value = match[2] or match[3] or match[4]
        return flag if value in (None, "True") else f"{flag} {value}"


@contextmanager
def speaking(speech: Speech) -> Iterator[None]:
    """Show warnings of this package as a command does, not with a line of source code."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, FlowDataWarning):
            print(f"flowdata: warning: {speech(message)}", file=sys.stderr)
        else:
            before(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def until_the_reader_leaves(run: Callable[[], int]) -> int:
    """Run what prints; nobody wants the rest once a pipe is closed, as by head."""
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes standard output once more when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def describe(error: BaseException) -> str:
    """What went wrong; of an error of the system the file, then the reason."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, KeyError):
        return f"there is no {error}"
    return str(error) or type(error).__name__


def one_line(text: str) -> str:
    """A text on one line, shortened; by characters, because not all scripts have spaces."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_TEXT else f"{line[: _SHOWN_TEXT - 1]}…"


def print_summary(losses: LossTable, output: Place) -> None:
    """Say that a table is written, and what its weights are."""
    from flowdata.report.summary import figures_of, summary_text, weights_of

    # The table first: it took hours, and is safe whatever its weights are.
    print(f"{output} is written; look at it with: flowdata inspect {output}\n")
    try:
        print(summary_text(losses, figures_of(losses, weights_of(losses))))
    except InvalidLossError as error:
        speech = Speech({"temperature": "--temperature"})
        print(f"note: {speech(error)}: flowdata inspect {output} --temperature ...")
