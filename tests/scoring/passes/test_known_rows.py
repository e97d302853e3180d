"""score(known=): only rows that the table has not are scored; the result is that of scoring all."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from language_models import llama
from scoring_lines import Line, Stop, absolute, rows_saved, scored, values
from shard_files import write_shards

from flowdata import (
    CausalLM,
    FlowDataWarning,
    InvalidLossError,
    LossTable,
    MismatchError,
    ShardRows,
    score,
)
from flowdata.scoring.parts.folder import Parts

IDS = [7, 3, 9, 1, 5, 2, 8, 4]
ROWS = [{"id": f"row {number}", "x": float(number)} for number in IDS]


def own(model, batch):
    own.rows += len(batch["x"])
    return model(batch["x"]).abs().float()


def scored_rows(rows, *, key="id", **options):
    own.rows = 0
    return score(Line(), rows, own, key=key, batch_size=3, progress=False, **options)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("by_path", [False, True])
def test_of_data_that_grew_only_new_rows_are_scored(tmp_path, kept, by_path):
    known = scored(None, values(20), slope := Line(2.0))
    if by_path:
        known.save(tmp_path / "known")
        known = tmp_path / "known"
    output = tmp_path / "losses.parquet" if kept else None
    table = scored(output, values(50), slope, known=known)
    assert absolute.rows == 30
    assert table.losses.tolist() == [2.0 * row for row in range(50)]
    whole = scored(None, values(50), slope).provenance
    assert table.provenance.identity() == whole.identity()
    assert table.provenance.parts is None
    table = scored(None, values(50), slope, known=table)
    assert absolute.rows == 0
    assert table.losses.tolist() == [2.0 * row for row in range(50)]


def test_a_pass_with_known_rows_goes_on_after_it_was_stopped(tmp_path):
    output = tmp_path / "losses.parquet"
    known = scored(None, values(20))
    with pytest.raises(Stop):
        scored(output, known=known, most=35)
    assert rows_saved(output) == set(range(20, 35))
    table = scored(output, known=known)
    assert absolute.rows == 15
    assert table.losses.tolist() == list(range(50))
    assert not Parts(output).folder.exists()
    # Without the table all rows that are not on disk are scored.
    other = tmp_path / "other.parquet"
    with pytest.raises(Stop):
        scored(other, known=known, most=35)
    assert scored(other).losses.tolist() == list(range(50))
    assert absolute.rows == 35


@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list], ids=["list", "dataset"])
def test_rows_are_found_by_key_wherever_they_are(make):
    known = scored_rows(make(ROWS))
    data = [ROWS[3], {"id": "new", "x": 50.0}, *ROWS[4:], *ROWS[:3], {"id": "newer", "x": 60.0}]
    table = scored_rows(make(data), known=known)
    assert own.rows == 2
    assert table.losses.tolist() == [row["x"] for row in data]
    assert table.keys.tolist() == [row["id"] for row in data]


def test_rows_that_are_gone_leave_their_content_unchecked():
    known = scored_rows(ROWS)
    with pytest.warns(FlowDataWarning, match="only the keys of known rows were compared"):
        table = scored_rows([{"id": "new", "x": 50.0}, *ROWS[:0:-1]], known=known)
    assert own.rows == 1
    assert table.losses.tolist() == [50.0, *(row["x"] for row in ROWS[:0:-1])]
    # Of no row known.
    with pytest.warns(FlowDataWarning, match="only the keys"):
        assert scored_rows([{"id": "a", "x": 1.0}], known=known).losses.tolist() == [1.0]


def test_parts_of_known_rows_are_found_by_key_too():
    parts = [scored_rows(ROWS[:3]), scored_rows(ROWS[3:])]
    known = LossTable.concat(parts)
    assert scored_rows(ROWS[::-1], known=known).losses.tolist() == [row["x"] for row in ROWS[::-1]]
    assert own.rows == 0
    changed = [row | {"x": 0.0} if row is ROWS[1] else row for row in ROWS]
    with pytest.raises(MismatchError, match=r"rows 0 to 2 of the table \(part 0 of 2\)"):
        scored_rows(changed, known=known)
    for some in (known, parts[0].select([1, 0]), LossTable(known.losses, _without_data(known))):
        table = some if some.keys is not None else some.with_keys([row["id"] for row in ROWS])
        with pytest.warns(FlowDataWarning, match=r"only the keys of|2 of 2 rows were not checked"):
            found = scored_rows([*ROWS[:2], {"id": "new", "x": 3.0}], known=table)
        assert found.losses.tolist() == [7.0, 3.0, 3.0]
        assert own.rows == 1


def test_known_rows_without_keys_must_be_the_first_ones():
    known = scored_rows(ROWS, key=None)
    assert scored_rows([*ROWS, {"id": "new", "x": 1.0}], known=known).keys[-1] == "new"
    assert own.rows == 1
    with pytest.raises(MismatchError, match=r"is not of the first 8 rows of this data set: .*keys"):
        scored_rows([*ROWS[::-1], {"id": "new", "x": 1.0}], known=known)
    with pytest.raises(MismatchError, match="has 8 rows, the data set 7: rows were taken out"):
        scored_rows(ROWS[1:], known=known)
    unknown = LossTable(known.losses, _without_data(known))
    with pytest.warns(FlowDataWarning, match="it cannot be told whether the table of known rows"):
        scored_rows(ROWS, known=unknown)


def _without_data(table):
    return replace(table.provenance, data_fingerprint=None)


def test_rows_changed_under_their_keys_are_refused():
    known = scored_rows(ROWS)
    with pytest.raises(MismatchError, match="rows were changed or reordered"):
        scored_rows([row | {"x": row["x"] + 1} for row in ROWS], known=known)


def test_a_table_of_another_model_or_loss_is_refused():
    known = scored(None, values(20))
    with pytest.raises(MismatchError, match="known rows does not belong here: it has model_hash="):
        scored(None, model=Line(3.0), known=known)
    with pytest.raises(MismatchError, match="it has loss='absolute', here it is 'own'"):
        scored_rows(ROWS, known=known)
    with pytest.raises(MismatchError, match="it has model_hash=None"):
        scored(None, known=LossTable.from_losses(np.ones(20)))


def test_parts_of_known_rows_are_checked_each_by_its_data():
    tables = [scored(None, values(20)[:8]), scored(None, values(20)[8:])]
    table = scored(None, values(), known=LossTable.concat(tables))
    assert absolute.rows == 30
    assert table.losses.tolist() == list(range(50))
    with pytest.raises(MismatchError, match=r"rows 0 to 11 of the table \(part 0 of 2\)"):
        scored(None, values(), known=LossTable.concat(tables[::-1]))


def test_known_losses_that_are_invalid_are_refused_or_dropped():
    rows = [{"id": name, "x": value} for name, value in zip("abc", (1.0, np.nan, 2.0), strict=True)]
    known = scored_rows(rows, on_invalid="drop")
    more = [*rows, {"id": "d", "x": 3.0}]
    with pytest.raises(InvalidLossError, match=r"at rows \[1\]"):
        scored_rows(more, known=known)
    assert own.rows == 0
    table = scored_rows(more, known=known, on_invalid="drop")
    np.testing.assert_array_equal(table.losses, [1.0, np.nan, 2.0, 3.0])


def sentences(count):
    """Rows of tokens of several lengths, some longer than 9."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 14, size=count)
    return [
        {"id": row, "input_ids": ids, "labels": [-100, *ids[1:]]}
        for row, ids in enumerate(rng.integers(5, 90, size=n).tolist() for n in lengths)
    ]


@pytest.mark.filterwarnings("ignore:.*cut")
@pytest.mark.parametrize("keys", [False, True])
def test_tokens_and_lengths_of_known_rows_are_kept(tmp_path, keys):
    rows, model = sentences(30), llama()
    loss = CausalLM(token_losses=True, max_length=9)
    options = {"key": "id" if keys else None, "progress": False}
    whole = score(model, rows, loss, **options)
    known = score(model, rows[:20], loss, **options)
    known.save(tmp_path / "known")
    data = rows[10:] + rows[:10] if keys else rows
    table = score(model, data, loss, known=tmp_path / "known", **options)
    whole = whole.select(np.roll(np.arange(30), -10)) if keys else whole
    np.testing.assert_allclose(table.losses, whole.losses, rtol=1e-5)
    np.testing.assert_allclose(table.token_losses, whole.token_losses, rtol=1e-4, atol=1e-6)
    assert table.n_tokens.tolist() == whole.n_tokens.tolist()
    assert table.lengths.tolist() == whole.lengths.tolist()
    assert table.provenance.truncated == sum(len(row["input_ids"]) > 9 for row in rows)
    # Losses of tokens are left out where they are not wanted, and missed where they are.
    plain = CausalLM(max_length=9)
    assert score(model, data, plain, known=known, **options).token_losses is None
    with pytest.raises(ValueError, match=r"no token losses.*load it with tokens=True"):
        score(model, data, loss, known=LossTable.load(tmp_path / "known"), **options)
    with pytest.raises(MismatchError, match="it has max_length=9, here it is 8"):
        score(model, data, CausalLM(max_length=8), known=known, **options)


def test_how_many_were_cut_is_unknown_of_a_part_of_known_rows():
    rows, model = sentences(20), llama()
    loss, options = CausalLM(max_length=9), {"key": "id", "progress": False}
    with pytest.warns(FlowDataWarning, match="were cut"):
        known = score(model, rows, loss, **options)
    with pytest.warns(FlowDataWarning, match="only the keys"):
        assert score(model, rows[:7], loss, known=known, **options).provenance.truncated is None


def test_data_with_another_transform_is_refused():
    plain = datasets.Dataset.from_list([{"x": float(row)} for row in range(6)])

    def doubled(rows):
        return {"x": [2 * value for value in rows["x"]]}

    known = scored_rows(plain.select(range(4)), key=None)
    with pytest.raises(MismatchError, match=r"another transform of the data \(None, here"):
        scored_rows(plain.with_transform(doubled), key=None, known=known)
    known = scored_rows(plain.with_transform(doubled).select(range(4)), key=None)
    table = scored_rows(plain.with_transform(doubled), key=None, known=known)
    assert own.rows == 2
    assert table.losses.tolist() == [0.0, 2, 4, 6, 8, 10]
    with pytest.raises(MismatchError, match="another transform of the data"):
        scored_rows(plain, key=None, known=known)


def test_shards_that_were_added_are_scored_alone(tmp_path):
    def losses(model, batch):
        losses.rows += len(batch)
        return batch.float()

    def number(sample):
        shard, place = sample["txt"].decode().split("/")
        return torch.tensor(10.0 * int(shard) + int(place))

    def rows_of(*shards):
        paths = [str(tmp_path / f"s-{shard}.tar") for shard in shards]
        return ShardRows(paths, decode=number, progress=False)

    write_shards(tmp_path, (3, 1, 2))
    losses.rows, options = 0, {"progress": False}
    known = score(Line(), rows_of(0, 1), losses, **options)
    losses.rows = 0
    table = score(Line(), rows_of(0, 1, 2), losses, known=known, **options)
    assert losses.rows == 2
    assert table.losses.tolist() == [0.0, 1, 2, 10, 20, 21]
    assert table.index.shards == ("s-0.tar", "s-1.tar", "s-2.tar")
    with pytest.raises(MismatchError, match="is not of the first 2 of these shards"):
        score(Line(), rows_of(0, 2, 1), losses, known=known, **options)
    with pytest.raises(ValueError, match="key='id' is for rows that have columns"):
        score(Line(), rows_of(0), losses, key="id", **options)
