"""Rows whose tokens are counted, some at a time, by passes that stop where they are told to."""

import contextlib
import time

import numpy as np
import pytest

from flowdata import lengths
from flowdata.scoring.language.causal_lm import LanguagePass
from flowdata.scoring.row_lengths import _LengthPass


class Stop(Exception):
    pass


class Rows:
    """Rows of tokens."""

    def __init__(self, rows=100, *, pause=0.0):
        self.rows, self.pause = rows, pause

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        time.sleep(self.pause)
        return {"input_ids": np.arange(row % 9 + 1)}


EXPECTED = (np.arange(100) % 9 + 1).tolist()


class Passed:
    """The rows that passes went through, ten at a time, and where one is stopped."""

    def __init__(self, monkeypatch):
        self.rows, self.stop = [], None
        for kind in (_LengthPass, LanguagePass):
            monkeypatch.setattr(kind, "rows_per_read", 10)
            name = "score_chosen" if hasattr(kind, "score_chosen") else "score_rows"
            monkeypatch.setattr(kind, name, self.recorded(getattr(kind, name)))

    def recorded(self, score_rows):
        def recording(scoring_pass, rows, read, *choose):
            if self.stop is not None and rows.max() >= self.stop:
                raise Stop
            self.rows += rows.tolist()
            return score_rows(scoring_pass, rows, read, *choose)

        return recording

    @contextlib.contextmanager
    def stopped(self, row):
        """What is called in the block stops before this row."""
        self.stop = row
        with pytest.raises(Stop):
            yield
        self.rows, self.stop = [], None


def counted(dataset, *arguments, **options):
    return lengths(dataset, *arguments, save_every=0.0, progress=False, **options)
