"""Exam: everything that a language model is asked, as rows that are scored in one pass."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Row: TypeAlias = dict[str, list[int]]
CHOICES = 4
HARDEST = "hardest"


class Exam:
    """Rows of tokens, and what is made of their losses.

    Attributes:
        rows: all of them.
        places: by the name of a part, where its rows are.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.places: dict[str, NDArray[np.int64]] = {}
        self._choices: set[str] = set()

    def add(self, name: str, rows: list[Row]) -> None:
        """Texts, whose loss is measured."""
        self.places[name] = np.arange(len(self.rows), len(self.rows) + len(rows))
        self.rows += rows

    def ask(self, name: str, rows: list[Row]) -> None:
        """Questions of which the right answer, and then three wrong ones, are rows."""
        self.add(name, rows)
        self._choices.add(name)

    def hardest(self, before: NDArray[np.float32]) -> None:
        """Name the tenth of the new texts that have the largest losses before."""
        for name in [part for part in self.places if part.startswith("new")]:
            places = self.places[name]
            hard = before[places].argsort()[-max(len(places) // 10, 1) :]
            self.places[name.replace("new", HARDEST)] = places[hard]

    def only(self, *names: str) -> "Exam":
        """The exam of some texts."""
        made = Exam()
        for name in names:
            if name in self.places:
                made.add(name, [self.rows[place] for place in self.places[name]])
        return made

    def marks(self, losses: NDArray[Any], n_tokens: NDArray[Any]) -> dict[str, float]:
        """Of texts the mean loss of a token, of questions the percentage of right choices.

        "skills, right" is the mean loss of a token of the right answers of all skills.
        """
        found, right = {}, []
        for name, places in self.places.items():
            if name in self._choices:
                found[name] = 100.0 * float(
                    (losses[places].reshape(-1, CHOICES).argmin(axis=1) == 0).mean()
                )
                if name.startswith("skill"):
                    right.append(places[::CHOICES])
            else:
                found[name] = _mean(losses, n_tokens, places)
        if right:
            skilled = [found[name] for name in self._choices if name.startswith("skill")]
            found["skills"] = float(np.mean(skilled))
            found["skills, right"] = _mean(losses, n_tokens, np.concatenate(right))
        return found


def _mean(losses: NDArray[Any], n_tokens: NDArray[Any], places: NDArray[np.int64]) -> float:
    """The mean loss of a token."""
    tokens = n_tokens[places]
    return float((losses[places].astype(np.float64) * tokens).sum() / tokens.sum())
