"""Weights are given to rows that are known by number or key, never to rows as they come."""

import datasets
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, IterableDataset

from flowdata import LossTable
from flowdata.reweight import reweight

ROWS = 40
WEIGHTS = np.linspace(0.01, 1.0, ROWS)
WEIGHT_OF = {f"row {row}": weight for row, weight in enumerate(WEIGHTS)}


def rows(shards=4):
    keys = list(WEIGHT_OF)
    made = datasets.Dataset.from_dict({"key": keys, "row": range(ROWS), "labels": np.ones(ROWS)})
    return made.to_iterable_dataset(num_shards=shards)


def counted(row, number):
    return row | {"__weight__": float(WEIGHTS[number])}


def counted_batch(batch, numbers):
    return batch | {"__weight__": [float(WEIGHTS[number]) for number in numbers]}


class Stream(IterableDataset):
    def __iter__(self):
        yield from range(ROWS)


def web_dataset():
    import webdataset

    return webdataset.WebDataset("somewhere.tar", shardshuffle=False)


STREAMS = {
    "torch": Stream,
    "torch, with a length": lambda: torch.utils.data.ChainDataset([Stream()]),
    "datasets": rows,
    "datasets, mapped": lambda: rows().map(dict).shuffle(seed=0),
    "webdataset": web_dataset,
    "generator": lambda: (row for row in range(ROWS)),
    "iterator": lambda: iter(range(ROWS)),
    "DataLoader": lambda: DataLoader(range(ROWS)),
    "set": lambda: set(range(ROWS)),
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
def test_weights_by_row_number_are_not_given_to_a_stream(make):
    for weights in (WEIGHTS, LossTable.from_losses(np.arange(10.0))):
        with pytest.raises(TypeError, match=r"no rows by number.*bring their weights.*by a column"):
            reweight(make(), weights)


COUNTED = {
    "map": lambda: rows().map(counted, with_indices=True),
    "map, in batches": lambda: rows().map(counted_batch, with_indices=True, batched=True),
    "map, of other columns": lambda: rows().map(
        lambda number: {"__weight__": WEIGHTS[number]}, with_indices=True, input_columns=[]
    ),
    "map, and more": lambda: rows().map(counted, with_indices=True).map(dict).take(9).shuffle(0),
    "map, after a shuffle": lambda: rows().shuffle(0).map(counted, with_indices=True),
    "a number that is looked up later": lambda: (
        rows()
        .map(lambda row, number: row | {"id": number}, with_indices=True)
        .map(lambda row: counted(row, row["id"]))
    ),
    "add_column": lambda: rows().add_column("__weight__", WEIGHTS),
    "joined": lambda: datasets.concatenate_datasets(
        [rows(), datasets.Dataset.from_dict({"__weight__": WEIGHTS}).to_iterable_dataset()], axis=1
    ),
    "one of two": lambda: datasets.interleave_datasets(
        [rows(), rows().map(counted, with_indices=True)]
    ),
    "a rank's": lambda: split_dataset_by_node(rows().map(counted, with_indices=True), 1, 2),
    "in a format": lambda: rows().map(counted, with_indices=True).with_format("torch"),
}


@pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
def test_weights_looked_up_by_a_number_that_the_stream_counts_are_refused(make):
    with pytest.raises(TypeError, match=r"this stream .*weights looked up by it would be those of"):
        reweight(make(), target="labels")


def by_key(stream):
    return stream.map(lambda row: row | {"__weight__": float(WEIGHT_OF[row["key"]])})


STREAMS_BY_KEY = {
    "plain": lambda: (by_key(rows()), 0),
    "shuffled before": lambda: (by_key(rows().shuffle(seed=0, buffer_size=9)), 0),
    "shuffled after": lambda: (by_key(rows()).shuffle(seed=0, buffer_size=9), 0),
    "of a rank": lambda: (by_key(split_dataset_by_node(rows(), 1, 2)), 0),
    "filtered by number": lambda: (
        by_key(rows().filter(lambda row, number: number % 3, with_indices=True)),
        0,
    ),
    "from files that hold the weight": lambda: (
        datasets.Dataset.from_dict(
            {"row": range(ROWS), "labels": np.ones(ROWS), "__weight__": WEIGHTS}
        ).to_iterable_dataset(num_shards=4),
        0,
    ),
    "of two workers": lambda: (by_key(rows()), 2),
}


@pytest.mark.parametrize("make", STREAMS_BY_KEY.values(), ids=STREAMS_BY_KEY)
def test_weights_looked_up_by_key_are_those_of_the_rows(make):
    stream, workers = make()
    data, collate = reweight(stream, target="labels")
    loader = DataLoader(data, 5, collate_fn=collate, num_workers=workers)
    batches = [(batch["row"], batch["labels"].weights) for batch in loader]
    numbers, weights = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert len(numbers) >= ROWS // 2
    np.testing.assert_array_equal(weights, np.float32(WEIGHTS)[numbers])


def test_a_stream_that_is_not_as_expected_is_taken():
    class Renamed(Stream):
        _ex_iterable = "of another release"

        def __iter__(self):
            yield {"x": 1.0, "labels": 1, "__weight__": 0.5}

    data, collate = reweight(Renamed())
    [batch] = DataLoader(data, collate_fn=collate)
    assert batch["labels"].weights.tolist() == [0.5]
