"""read_scored without a key: rows that are in another order than the data set are refused."""

import json

import datasets
import fsspec
import numpy as np
import pytest
from language_models import samples

import flowdata

LOSSES = [n / 8 for n in range(40)]
SAID = json.dumps({"loss": "causal_lm"})
TURNS = [{"role": "user", "content": "The fox"}, {"role": "assistant", "content": "jumps."}]


def chat(number):
    more = {"name": "Ann"} if number == 3 else {}
    return [*TURNS, {"role": "user", "content": str(number), **more}]


ROWS = {
    "keys and missing numbers": [
        {"id": f"doc-{n}", "n": n or None, "x": n / 3 if n % 7 else float("nan")} for n in range(40)
    ],
    "tokens": samples(40),
    "chats": [{"from": "alpaca", "messages": chat(n)} for n in range(40)],
    "images": [{"image": {"bytes": b"%d" % n, "path": None}, "label": n % 3} for n in range(40)],
}


def files_of(scored):
    for start in (0, 20):
        name = f"memory://row-order/{scored[0]['loss']}/part-{start:02}.parquet"
        with fsspec.open(name, "wb") as file:
            scored.select(range(start, start + 20)).to_parquet(file)
    return f"memory://row-order/{scored[0]['loss']}"


KINDS = {
    "datasets": lambda scored: scored,
    "pandas": lambda scored: scored.to_pandas(),
    "arrow": lambda scored: scored.with_format("arrow")[:],
    "lists": lambda scored: scored[:],
    "numpy": lambda scored: {
        name: column.to_numpy() for name, column in scored.to_pandas().items()
    },
    "files": files_of,
}


def scored_rows(rows):
    made = datasets.Dataset.from_list(rows).add_column("loss", LOSSES)
    return made.add_column("scored_by", [SAID] * len(rows))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("has", ROWS)
def test_rows_in_another_order_are_refused(kind, has):
    rows, scored = ROWS[has], scored_rows(ROWS[has])
    in_order, shuffled = KINDS[kind](scored), KINDS[kind](scored.shuffle(seed=0))
    for data in (rows, datasets.Dataset.from_list(rows).with_format("torch")):
        assert flowdata.read_scored(in_order, dataset=data).losses.tolist() == LOSSES
        with pytest.raises(flowdata.MismatchError, match=r"row \d+ that was scored has another"):
            flowdata.read_scored(shuffled, dataset=data)


def test_numbers_and_missing_values_may_be_stored_otherwise():
    rows = [{"id": 2**53 + n, "x": n / 3, "tags": None, "day": f"day {n}"} for n in range(40)]
    columns = {
        "id": np.array([row["id"] for row in rows]),
        "x": np.array([row["x"] for row in rows], dtype=np.float32),
        "tags": [[]] * 40,
        "day": [np.datetime64("2026-01-01")] * 40,
        "loss": LOSSES,
        "scored_by": [SAID] * 40,
    }
    assert flowdata.read_scored(columns, dataset=rows).losses.tolist() == LOSSES
    columns["id"][[5, 6]] = columns["id"][[6, 5]]
    with pytest.raises(flowdata.MismatchError, match="row 5 that was scored has another 'id' than"):
        flowdata.read_scored(columns, dataset=rows)


def test_rows_that_nothing_tells_apart_are_taken_in_their_order_with_a_warning():
    columns = {"loss": [1.0, 2.0], "scored_by": [SAID] * 2}
    with pytest.warns(flowdata.FlowDataWarning, match="give key=, a column that identifies a row"):
        table = flowdata.read_scored(columns, dataset=[{"x": 1}, {"x": 2}])
    assert table.losses.tolist() == [1.0, 2.0]
