"""Tokenized rows for packs, and the samples that are in a pack."""

from itertools import chain

import numpy as np


def token_rows(lengths, vocabulary=50, seed=0):
    """Rows whose first tokens are not learned."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        ids = random.integers(1, vocabulary, length)
        labels = np.where(np.arange(length) < min(2, length - 1), -100, ids)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def samples_of(pack):
    """(input_ids, labels) of each sample of a pack, as lists."""
    positions = np.asarray(pack["position_ids"]).ravel()
    starts = np.flatnonzero(positions == 0)
    lengths = np.diff(np.append(starts, positions.size))
    assert positions.tolist() == [place for length in lengths for place in range(length)]
    columns = [np.asarray(pack[name]).ravel() for name in ("input_ids", "labels")]
    parts = zip(*(np.split(column, starts[1:]) for column in columns), strict=True)
    return [(ids.tolist(), labels.tolist()) for ids, labels in parts]


def as_samples(rows):
    """The same of rows, of whose labels the first is never learned."""
    return [(row["input_ids"], [-100, *row["labels"][1:]]) for row in rows]


def joined(lists):
    """The entries of all of them, one after the other."""
    return list(chain.from_iterable(lists))
