"""Weights of response tokens: of a table, or one's own, in whatever form they come."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader
from weighted_language import make_rows, padded, small_model, tables

from flowdata import FlowWeights, InvalidLossError, LossTable, MismatchError
from flowdata.reweight import reweight

ROWS = make_rows()
LENGTHS = [len(row["labels"]) for row in ROWS]
RESPONSES = [length - 2 for length in LENGTHS]


@pytest.fixture(scope="module")
def table():
    return tables(small_model(), ROWS)


def lists(flat, counts):
    return [part.tolist() for part in np.split(np.asarray(flat), np.cumsum(counts)[:-1])]


def weights_of(data):
    return [item.weight for item in data]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


OWN = lists(np.random.default_rng(1).gamma(2, size=sum(RESPONSES)), RESPONSES)
"""Of each response token."""
COLUMNS = {
    "response tokens": OWN,
    # Of labels that are not learned they have any number.
    "labels": [[9.0, np.nan, *own] for own in OWN],
    "labels but the first": [[-1.0, *own] for own in OWN],
}
FORMS = {
    "lists": lambda column: column,
    "arrays": lambda column: [np.array(part, dtype=np.float32) for part in column],
    "tensors": lambda column: [torch.tensor(part) for part in column],
    "an array of objects": lambda column: np.array([*map(np.array, column)], dtype=object),
    "a column of datasets": lambda column: datasets.Dataset.from_dict({"w": column})["w"],
    "a column of tensors": lambda column: datasets.Dataset.from_dict({"w": column}).with_format(
        "torch"
    )["w"],
    "an array of Arrow": pa.array,
    "a flat list": lambda column: [number for part in column for number in part],
    "a flat array": np.concatenate,
    "a flat tensor": lambda column: torch.tensor(np.concatenate(column)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", COLUMNS)
def test_what_numbers_are_of_is_told_by_how_many_there_are(kind, form):
    data, _ = reweight(ROWS, FORMS[form](COLUMNS[kind]), level="token", normalize=None)
    same(weights_of(data), OWN)


@pytest.mark.parametrize("form", ["lists", "datasets", "tensors", "no labels", "masks", "tuples"])
def test_labels_are_read_from_whatever_rows_have(form):
    rows = {
        "lists": ROWS,
        "datasets": datasets.Dataset.from_list([row | {"text": "a"} for row in ROWS]),
        "tensors": [{k: torch.tensor(v) for k, v in row.items()} for row in ROWS],
        "no labels": [{"input_ids": row["input_ids"][1:]} for row in ROWS],
        "masks": [
            {"input_ids": row["input_ids"], "completion_mask": [int(x >= 0) for x in row["labels"]]}
            for row in ROWS
        ],
        "tuples": [(row["input_ids"], row["labels"]) for row in ROWS],
    }[form]
    data, _ = reweight(rows, OWN, level="token", normalize=None)
    same(weights_of(data), OWN)


def test_two_dimensions_are_rows_of_numbers():
    rows = [{"labels": [-100, 4, 5]}, {"labels": [-100, -100, 6]}]
    for own in (np.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3)):
        data, _ = reweight(rows, own, level="token", normalize=None)
        same(weights_of(data), [[1, 2], [5]])


def test_weights_made_of_a_table_are_its_weights(table):
    for options in (
        {},
        {"temperature": 1.0},
        {"function": lambda losses, tau: 1 / (tau + losses)},
        {"temperature": "quantile:0.9", "function": lambda losses, tau: losses <= tau},
    ):
        made = table.token_weights(**options)
        expected = lists(made.values / made.values.mean(), RESPONSES)
        for weights, given in ((table, options), (made, {}), (made.values, {})):
            data, _ = reweight(ROWS, weights, level="token", **given)
            same(weights_of(data), expected)


def test_a_table_is_made_into_weights_of_samples_too(table):
    options = {"temperature": 2.0, "function": lambda losses, tau: losses > tau}
    data, _ = reweight(ROWS, table, normalize=None, **options)
    same(weights_of(data), table.weights(**options).values)


def damaged(table):
    losses, tokens = table.losses.copy(), table.token_losses.copy()
    losses[1], tokens[0] = np.nan, np.inf
    return LossTable(
        losses, LossTable.from_losses(losses).provenance, n_tokens=table.n_tokens,
        token_losses=tokens,
    )  # fmt: skip


def test_rows_and_tokens_without_a_valid_loss_count_nothing_if_asked(table):
    bad = damaged(table)
    for level in ("sample", "token"):
        with pytest.raises(InvalidLossError, match=r'row.*on_invalid="drop"'):
            reweight(ROWS, bad, level=level)
    for options in ({}, {"function": lambda losses, tau: losses >= 0}):
        data, collate = reweight(
            ROWS, bad, level="token", on_invalid="drop", collate_fn=padded, **options
        )
        [batch] = DataLoader(data, len(ROWS), collate_fn=collate)
        counts = (batch["labels"].weights > 0).sum(1).tolist()
        assert counts == [RESPONSES[0] - 1, 0, *RESPONSES[2:]]
    data, _ = reweight(ROWS, bad, on_invalid="drop")
    assert [bool(weight) for weight in weights_of(data)] == [row != 1 for row in range(len(ROWS))]


def test_functions_of_token_losses_that_give_no_weights_are_told_so(table):
    for function, message in (
        (lambda losses, tau: losses < 0, "of response tokens, .* all 46 weights are 0"),
        (lambda losses, tau: -losses, "of response tokens, .* function gives 46 of 46"),
    ):
        with pytest.raises(InvalidLossError, match=message):
            reweight(ROWS, table, level="token", function=function)


def column(row, numbers):
    return [numbers if place == row else own for place, own in enumerate(OWN)]


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        (OWN[:-1], MismatchError, "8 rows, but there are 7 weights"),
        (
            column(3, [1.0] * 5),
            MismatchError,
            "row 3 has 5 weights of tokens, but 10 response tokens, 12 labels, 11 labels but the "
            "first of a row; in the rows before they are of its response tokens",
        ),
        # The number of its labels, where the others have one for each response token.
        (column(3, [1.0] * 12), MismatchError, "row 3 has 12 weights of tokens"),
        (column(0, [1.0]), MismatchError, "row 0 has 1 weights of tokens, but 3 response"),
        (column(2, None), ValueError, "row 2 must have a list of weights of its tokens, got None"),
        (column(2, "abc"), ValueError, "row 2 must have a list of weights"),
        (column(2, [1.0, np.nan, 1, 1, 1]), InvalidLossError, "row 2 has the weight nan .* 1:"),
        (column(2, [1.0, 1, 1, 1, -2]), InvalidLossError, "row 2 has the weight -2.0 .* 4:"),
        ([[0.0] * len(own) for own in OWN], InvalidLossError, "all 46 response tokens are 0"),
        (dict(enumerate(OWN)), TypeError, "a column of lists of them, got {0"),
        (column(0, [[1.0]]), ValueError, "row 0 must have a list .* float64 of shape"),
        (np.ones(5), MismatchError, "5 weights of tokens, but the data set has 46 response tokens"),
        (FlowWeights.from_weights(np.ones(7)), MismatchError, "there are 7 weights of tokens"),
        ("token_weights", TypeError, r"data\['token_weights'\]"),
        ([], MismatchError, "there are 8 rows|8 rows, but there are 0 weights"),
        (LossTable.from_losses(np.ones(8)), ValueError, r"score with CausalLM\(token_losses=True"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_are_refused_with_the_row_named(own, error, message):
    with pytest.raises(error, match=message):
        reweight(ROWS, own, level="token")


AMBIGUOUS = [{"labels": [4, 5, -100, 6]}, {"labels": [4, -100, 5]}]
"""In both rows as many labels are learned as there are without the first; in one, others."""


@pytest.mark.parametrize("own", [[[1.0, 2, 3], [4.0, 5]], [1.0, 2, 3, 4, 5]])
def test_numbers_that_may_be_of_two_kinds_are_refused(own):
    with pytest.raises(
        MismatchError,
        match=r"of learned labels or of labels but the first .* in row 0 not the same",
    ):
        reweight(AMBIGUOUS, own, level="token")
    # Where the other rows tell, it is known.
    rows = [*AMBIGUOUS, {"labels": [4, 5, 6]}]
    data, _ = reweight(rows, [[1.0, 2, 3], [4.0, 5], [6.0, 7, 8]], level="token", normalize=None)
    same(weights_of(data), [[2, 3], [5], [7, 8]])
    data, _ = reweight(rows, [[1.0, 2, 3], [4.0, 5], [6.0, 7]], level="token", normalize=None)
    same(weights_of(data), [[1, 3], [5], [6, 7]])


def test_what_makes_weights_of_losses_needs_losses(table):
    for options in ({"temperature": 1.0}, {"function": np.add}, {"on_invalid": "drop"}):
        for level, weights in (("token", OWN), ("token", table.token_weights()), ("sample", OWN)):
            with pytest.raises(ValueError, match=f"{next(iter(options))}: .* weights already"):
                reweight(ROWS, weights, level=level, **options)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"text": "a"}], TypeError, r"row 0 is a dict with keys \['text'\], and has no labels"),
        ([3], TypeError, "row 0 is a int, and has no labels"),
        ([{"labels": [0.5]}], ValueError, "labels of row 0 must be whole numbers"),
        ([{"input_ids": [1, 2], "labels": [1]}], ValueError, "row 0 has 2 input_ids, but 1 labels"),
    ],
)
def test_rows_without_labels_are_named(rows, error, message):
    with pytest.raises(error, match=message):
        reweight(rows, [[1.0]], level="token")


def test_a_collate_function_that_changes_labels_is_found_out():
    def cut(rows):
        return padded([{name: part[:4] for name, part in row.items()} for row in rows])

    data, collate = reweight(ROWS, OWN, level="token", collate_fn=cut)
    with pytest.raises(ValueError, match=r"row 0 has 2 labels .* in the batch, but weights of 3"):
        next(iter(DataLoader(data, 2, collate_fn=collate)))
