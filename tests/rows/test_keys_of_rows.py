"""Keys that do not fit are named, or dropped and counted; and rows of anything are found by key."""

import itertools
from collections import Counter

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from keyed_streams import KEYS, ROWS, SEED, ids_of, make_table, planned
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from flowdata import EpochPlan, FlowDataWarning, LossTable, MismatchError, attach, resample_rows

TABLE = make_table()
DATA = [{"id": key, "number": int(key[1:])} for key in sorted(KEYS)]
WEIGHTS = dict(zip(TABLE.keys, TABLE.weights().values.tolist(), strict=True))


def stream(rows=DATA, shards=2):
    return datasets.Dataset.from_list(rows).to_iterable_dataset(num_shards=shards)


class Divided(IterableDataset):
    """Divides its rows between workers itself, and has states."""

    def __init__(self, has_states=False):
        self.next = 0
        if has_states:
            self.state_dict = lambda: {"next": self.next}
            self.load_state_dict = self._load

    def _load(self, state):
        self.next = state["next"]

    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        begin, self.next = self.next, 0
        for place in range(first + begin * step, ROWS, step):
            self.next = (place - first) // step + 1
            yield dict(DATA[place])
        self.next = 0


class ByNumber(Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, number):
        return dict(DATA[number])


class Passes:
    """An iterable that begins anew, and is nothing else."""

    def __iter__(self):
        return iter(DATA)


PLAIN = {
    "a list": lambda: DATA,
    "an iterable": Passes,
    "of torch": Divided,
    "of torch, with states": lambda: Divided(has_states=True),
}


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("workers", [0, 2])
def test_any_iterable_of_dicts_is_drawn_as_the_plan_says(make, workers):
    drawn = resample_rows(make(), TABLE, key="id", seed=SEED)
    loader = DataLoader(drawn, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    for epoch in (0, 2, 1, 1):
        drawn.set_epoch(epoch)
        assert Counter(ids_of(loader)) == planned(TABLE, epoch)


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("window", [1, 30, 1000])
def test_it_goes_on_at_any_row(make, window):
    options = {"key": "id", "seed": SEED, "window": window}
    whole = resample_rows(make(), TABLE, **options)
    whole.set_epoch(1)
    ids, states = [], [whole.state_dict()]
    for row in whole:
        ids.append(row["id"])
        states.append(whole.state_dict())
    assert Counter(ids) == planned(TABLE, 1)
    for done in range(0, ROWS + 1, 7):
        resumed = resample_rows(make(), TABLE, **options)
        resumed.load_state_dict(states[done])
        assert resumed.state_dict() == states[done]
        assert ids_of(resumed) == ids[done:]
    with pytest.raises(MismatchError, match="seed=3, here it is 4"):
        resample_rows(make(), TABLE, **options | {"seed": 4}).load_state_dict(states[3])


def test_a_generator_is_gone_through_once():
    drawn = resample_rows((row for row in DATA), TABLE, key="id", seed=SEED)
    assert Counter(ids_of(drawn)) == planned(TABLE, 0)
    with pytest.raises(RuntimeError, match="a generator can be gone through once, and was"):
        list(drawn)


BY_NUMBER = {
    "a list": lambda rows: rows,
    "of torch": lambda rows: ByNumber() if len(rows) == ROWS else rows,
    "of datasets": datasets.Dataset.from_list,
    "of datasets, some rows": lambda rows: datasets.Dataset.from_list(
        [*rows[::-1], {"id": "?", "number": 1}]
    ).select(range(len(rows))),
    "of datasets, with a format": lambda rows: datasets.Dataset.from_list(rows).with_format(
        "torch"
    ),
}


@pytest.mark.parametrize("make", BY_NUMBER.values(), ids=BY_NUMBER)
def test_rows_by_number_get_their_weights(make):
    weighted = attach(make(DATA), TABLE, key="id", column="w")
    assert len(weighted) == ROWS
    assert {row["id"]: float(row["w"]) for row in weighted} == pytest.approx(WEIGHTS, rel=1e-6)
    other = [row | {"id": "z" + row["id"]} for row in DATA[:2]]
    with pytest.raises(MismatchError, match=r"'zk000', 'zk001'; .* on_missing=.drop"):
        attach([*DATA, *other], TABLE, key="id")
    with pytest.warns(FlowDataWarning, match="2 rows .* of no row of the loss table .*'zk000'"):
        weighted = attach(make([*other, *DATA[:3]]), TABLE, key="id", on_missing="drop")


def test_a_format_keeps_the_type_and_the_weight_is_seen():
    data = datasets.Dataset.from_list(DATA).with_format("torch", columns=["number"])
    weighted = attach(data, TABLE, key="id")
    assert isinstance(weighted[0]["weight"], torch.Tensor)
    assert weighted[4:6]["weight"].shape == (2,)
    rows = attach(DATA, TABLE, key="id")
    assert [row["id"] for row in rows[2:4]] == ids_of(DATA[2:4])
    assert rows[-1]["weight"] == WEIGHTS[DATA[-1]["id"]]
    with pytest.raises(IndexError):
        rows[ROWS]


@pytest.mark.parametrize("make", [stream, list], ids=["of datasets", "a list"])
def test_keys_that_do_not_fit_are_errors_or_counted(make):
    missing = make([*DATA[:100], {"id": "zz", "number": 0}, *DATA[100:]])
    with pytest.raises(MismatchError, match=r"1 of \d+ keys .* 'zz'; .* on_missing"):
        list(resample_rows(missing, TABLE, key="id"))
    dropping = resample_rows(missing, TABLE, key="id", seed=SEED, on_missing="drop")
    with pytest.warns(FlowDataWarning, match="1 rows with keys of no row .* dropped: 'zz'"):
        assert Counter(ids_of(dropping)) == planned(TABLE, 0)
    # In one window, and in windows apart.
    for twice in (make([*DATA[:3], *DATA]), make([*DATA, *DATA[:3]])):
        for window in (1, 50, 1000):
            with pytest.raises(MismatchError, match="came before: 'k000', 'k001', 'k002'; a key"):
                list(resample_rows(twice, TABLE, key="id", window=window))
        dropping = resample_rows(twice, TABLE, key="id", seed=SEED, on_repeated="drop")
        with pytest.warns(FlowDataWarning, match="3 rows with keys that had come before"):
            assert Counter(ids_of(dropping)) == planned(TABLE, 0)


@pytest.mark.parametrize("make", [stream, list, Passes], ids=["datasets", "list", "iterable"])
def test_what_cannot_work_is_refused_with_a_reason(make):
    rows = make() if make is Passes else make(DATA)
    with pytest.raises(ValueError, match=r"no column 'uid', there is \['id', 'number'\]"):
        list(resample_rows(rows, TABLE, key="uid"))
    with pytest.raises(MismatchError, match=r"texts for keys.* whole numbers, such as 0"):
        list(resample_rows(rows, TABLE, key="number"))
    with pytest.raises(ValueError, match="a column 'number' already"):
        list(attach(rows, TABLE, key="id", column="number")) and attach(DATA, TABLE)[0]
    with pytest.raises(ValueError, match="give key="):
        resample_rows(rows, TABLE)
    with pytest.raises(MismatchError, match="has no keys"):
        resample_rows(rows, LossTable.from_losses([1.0, 2.0]), key="id")
    with pytest.raises(MismatchError, match="3 weights for 230 rows"):
        resample_rows(rows, TABLE, [1.0, 2.0, 3.0], key="id")
    with pytest.raises(ValueError, match='on_missing must be "raise" or "drop", got None'):
        attach(rows, TABLE, key="id", on_missing=None)
    with pytest.raises(ValueError, match="window must be an int >= 1, got 0"):
        resample_rows(rows, TABLE, key="id", window=0)


def test_data_with_row_numbers_is_for_samplers():
    with pytest.raises(TypeError, match="rows by number: draw them with FlowSampler"):
        resample_rows(datasets.Dataset.from_list(DATA), TABLE, key="id")


@pytest.mark.parametrize("door", [attach, resample_rows])
def test_what_is_no_data_set_is_refused(door):
    with pytest.raises(
        TypeError, match=r"one data set, this is a IterableDatasetDict of \['train'"
    ):
        door(datasets.IterableDatasetDict({"train": stream()}), TABLE, key="id")
    with pytest.raises(TypeError, match=r"Dataset\.from_pandas"):
        door(pd.DataFrame(DATA), TABLE, key="id")
    for other in (5, "rows.jsonl"):
        with pytest.raises(TypeError, match=f"got a {type(other).__name__}"):
            door(other, TABLE, key="id")


def test_a_state_of_other_draws_or_of_another_order_is_refused():
    first = resample_rows(stream().shuffle(seed=1, buffer_size=20), TABLE, key="id", seed=SEED)
    for _ in zip(first, range(50), strict=False):
        pass
    state = first.state_dict()
    other = resample_rows(stream().shuffle(seed=1, buffer_size=20), TABLE, key="id", seed=4)
    other.load_state_dict(state)
    with pytest.raises(MismatchError, match="seed=3, here it is 4"):
        next(iter(other))
    other = resample_rows(stream().shuffle(seed=2, buffer_size=20), TABLE, key="id", seed=SEED)
    other.load_state_dict(state)
    with pytest.raises(MismatchError, match="does not come in the order"):
        next(iter(other))


def test_types_formats_and_columns_of_a_stream_stay_what_they_are():
    features = datasets.Features(
        {"id": datasets.Value("string"), "number": datasets.ClassLabel(num_classes=ROWS)}
    )
    typed = stream().cast(features)
    for made, expected in (
        (resample_rows(typed, TABLE, key="id"), features),
        (attach(typed, TABLE, key="id"), {**features, "weight": datasets.Value("float64")}),
    ):
        assert isinstance(made, datasets.IterableDataset)
        assert made.features == expected
        assert (made.num_shards, made.column_names) == (2, list(expected))
        assert isinstance(next(iter(made.with_format("torch")))["number"], torch.Tensor)


def test_weights_of_ones_own_and_options_of_the_plan_are_taken(tmp_path):
    TABLE.save(tmp_path / "table.parquet")
    own = np.random.default_rng(5).random(ROWS)
    options = {"epoch_size": 100, "scheme": "multinomial"}
    drawn = resample_rows(stream(), tmp_path / "table.parquet", own, key="id", seed=9, **options)
    expected = EpochPlan(own, seed=9, **options).counts().tolist()
    assert Counter(ids_of(drawn)) == +Counter(dict(zip(TABLE.keys, expected, strict=True)))
    weighted = {row["id"]: row["weight"] for row in attach(stream(), TABLE, own, key="id")}
    assert weighted == dict(zip(TABLE.keys, own.tolist(), strict=True))


def test_copies_are_apart_and_rows_of_their_own():
    ones = LossTable.from_losses(np.ones(ROWS), keys=KEYS)
    rows = list(resample_rows(stream(), ones, key="id", epoch_size=3.0, seed=1))
    ids = ids_of(rows)
    # In a random order of 3 copies each, 2 of 689 neighbours are expected to be alike.
    assert sum(first == second for first, second in itertools.pairwise(ids)) < 20
    rows[0]["number"] = None
    assert sum(row["number"] is None for row in rows) == 1
    in_order = ids_of(resample_rows(stream(), ones, key="id", epoch_size=3.0, window=1))
    assert in_order == [key for key in ids_of(DATA) for _ in range(3)]


def test_weights_in_the_place_of_a_table_are_called_so():
    for function in (attach, resample_rows):
        with pytest.raises(TypeError, match="a LossTable, or the path of one, is needed, got Flow"):
            function(stream(), TABLE.weights(), key="id")
