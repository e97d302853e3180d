"""Data of equal content has equal hashes, any other content has others."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Subset, TensorDataset

from flowdata.table.fingerprint import (
    RANDOM,
    dataset_fingerprint,
    reads_the_same_twice,
    transform_fingerprint,
)


class Noisy(list):
    def __getitem__(self, row):
        return super().__getitem__(row), torch.rand(2)


class Opaque:
    """A sample of a kind that has no bytes."""


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    "build",
    [
        lambda: [(torch.arange(3) + row, row) for row in range(5)],
        lambda: [{"text": f"row {row}", "values": [1.5, None, True, b"x"]} for row in range(5)],
        lambda: [np.full((2, 2), row, np.float16) for row in range(5)],
        lambda: [np.float32(row) for row in range(5)],
        lambda: TensorDataset(torch.arange(10.0).reshape(5, 2), torch.arange(5)),
        lambda: Subset(TensorDataset(torch.arange(9.0)), [8, 1, 2, 3, 4]),
        lambda: [Image.new("RGB", (4, 2), (row, 0, 0)) for row in range(5)],
        lambda: datasets.Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 0, 1, 2]}),
        list,
    ],
)
def test_data_sets_of_equal_content_have_equal_fingerprints(build):
    assert dataset_fingerprint(build()) == dataset_fingerprint(build()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2], [2, 1]),
        ([1, 2], [1, 2, 2]),
        ([1, 2], [1.0, 2.0]),
        ([1], [True]),
        (["12", "3"], ["1", "23"]),
        (["a"], [b"a"]),
        ([("ab", "c")], [("a", "bc")]),
        ([[1, [2]]], [[[1], 2]]),
        ([{"a": 1}], [{"b": 1}]),
        ([torch.zeros(4)], [torch.zeros(2, 2)]),
        ([torch.zeros(4)], [torch.zeros(4, dtype=torch.int32)]),
        ([0] * 20, [0] * 30),
        ([np.zeros(4)], [np.eye(4)[3]]),
        ([np.zeros(4)], [np.zeros(4) - 0.0j]),
        ([Image.new("L", (4, 2))], [Image.new("L", (2, 4))]),
        ([Image.new("L", (4, 2))], [Image.new("L", (4, 2), 1)]),
        ([Image.new("L", (4, 1))], [Image.new("P", (4, 1))]),
        ([datetime(2024, 1, 2)], [datetime(2024, 1, 3)]),
        ([{"at": date(2024, 1, 2)}], [{"at": date(2024, 1, 3)}]),
        ([time(1)], [time(2)]),
        ([timedelta(1)], [timedelta(2)]),
        ([Decimal("1.0")], [Decimal("1.00")]),
        ([UUID(int=1)], [UUID(int=2)]),
        ([Path("a")], [Path("b")]),
        ([Path("a")], ["a"]),
        ([Colour.RED], [Colour.BLUE]),
        ([Point(1, 2)], [Point(2, 1)]),
        ([{1, 2}], [{1, 3}]),
        ([1 + 2j], [1 + 3j]),
        ([np.array([(1, "a")], dtype=[("n", "i4"), ("text", "O")])], [np.array([(1, "b")], "O")]),
        # What cannot be seen does not hide what can be.
        ([(Opaque(), 1)], [(Opaque(), 2)]),
        ([(Opaque(), 1)], [(object(), 1)]),
    ],
)
def test_data_sets_of_other_content_have_other_fingerprints(one, other):
    assert dataset_fingerprint(one) != dataset_fingerprint(other)


def test_the_order_of_the_keys_of_a_sample_does_not_matter():
    one, other = [OrderedDict(a=1, b=2)], [{"b": 2, "a": 1}]
    assert dataset_fingerprint(one) == dataset_fingerprint(other)


def test_at_most_sixteen_rows_are_read_among_them_the_first_and_the_last():
    class Counting(list):
        read = ()

        def __getitem__(self, row):
            self.read = {*self.read, row}
            return super().__getitem__(row)

    rows = Counting(range(1000))
    dataset_fingerprint(rows)
    assert len(rows.read) == 16
    assert {0, 999} < rows.read


def test_a_hugging_face_data_set_has_one_fingerprint_under_any_format_and_transform():
    plain = datasets.Dataset.from_dict({"text": list("abcde"), "label": [0, 1, 0, 1, 2]})
    expected = dataset_fingerprint(plain)
    for kind in ("numpy", "torch", "arrow"):
        assert dataset_fingerprint(plain.with_format(kind, columns=["label"])) == expected
    noisy = plain.with_transform(lambda rows: {"label": torch.rand(len(rows["label"])).tolist()})
    assert dataset_fingerprint(noisy) == expected
    plain.set_format("torch")
    assert dataset_fingerprint(plain) == expected
    assert plain.format["type"] == "torch"
    assert dataset_fingerprint(plain.select([1, 0, 2, 3, 4])) != expected


def test_data_that_reads_differently_twice_has_no_fingerprint():
    torch.manual_seed(0)
    assert dataset_fingerprint(Noisy(range(5))) is None
    assert not reads_the_same_twice(Noisy(range(5)))
    assert reads_the_same_twice(list(range(5)))


@pytest.mark.parametrize(
    "sample",
    [
        *(Opaque(), {"a": Opaque()}, [[Opaque()]], object),
        torch.eye(3).to_sparse(),
    ],
)
def test_samples_that_cannot_be_hashed_have_no_fingerprint_and_are_not_called_noisy(sample):
    assert dataset_fingerprint([sample]) is None
    assert reads_the_same_twice([sample])


def test_dates_of_a_hugging_face_data_set_are_known():
    def made(year):
        return datasets.Dataset.from_dict({"at": [datetime(year, 1, day) for day in range(1, 9)]})

    assert dataset_fingerprint(made(2024)) == dataset_fingerprint(made(2024)) is not None
    assert dataset_fingerprint(made(2024)) != dataset_fingerprint(made(2025))


def test_a_sample_that_holds_itself_has_a_fingerprint():
    sample = [1]
    sample.append(sample)
    assert dataset_fingerprint([sample]) is not None


def test_a_transform_is_known_by_what_it_makes_and_formats_are_none():
    plain = datasets.Dataset.from_dict({"x": list(range(5))})
    one, same, other = (
        plain.with_transform(lambda rows, by=by: {"x": [x + by for x in rows["x"]]})
        for by in (1, 1, 2)
    )
    assert transform_fingerprint(one) == transform_fingerprint(same)
    assert transform_fingerprint(one) != transform_fingerprint(other)
    torch.manual_seed(0)
    noisy = plain.with_transform(lambda rows: {"x": torch.rand(len(rows["x"])).tolist()})
    assert transform_fingerprint(noisy) == RANDOM
    for data in (plain, plain.with_format("torch"), [1, 2], TensorDataset(torch.ones(2))):
        assert transform_fingerprint(data) is None


def test_arrays_of_objects_are_known_by_content_and_not_by_address():
    one, other = (
        [np.array(["".join(["long ", "text"]), [row, 2]], dtype=object) for row in range(3)]
        for _ in range(2)
    )
    assert dataset_fingerprint(one) in (None, dataset_fingerprint(other))


def test_conjugated_tensors_are_known_by_their_values():
    values = torch.tensor([1.0 + 2.0j, 3.0])
    one, other = ([values.conj()], [values.conj().resolve_conj()])
    assert dataset_fingerprint(one) == dataset_fingerprint(other) != dataset_fingerprint([values])
