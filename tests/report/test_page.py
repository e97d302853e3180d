"""The page as a browser reads it: what it shows, and what hostile texts cannot do to it."""

import json
import re
from dataclasses import replace
from unittest.mock import patch

import datasets
import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from read_page import Page

from flowdata import FlowWeights, LossTable, MismatchError, ShardIndex
from flowdata.commands.cli import main
from flowdata.report import html
from flowdata.report.as_json import json_report
from flowdata.report.contents import contents_of
from flowdata.report.data_of_tables import rows_of_table
from flowdata.report.samples import Samples
from flowdata.report.summary import groups_of, weights_of

mpl.use("Agg")
RANDOM = np.random.default_rng(3)
ROWS = 60
LOSSES = RANDOM.gamma(2.0, size=ROWS).astype(np.float32)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060"
    "0000000400015c0a2ac50000000049454e44ae426082"
)


def page_of(contents, *, figures=False):
    """The page, which is sound: loads nothing, runs nothing, can be read aloud."""
    # Drawing takes most of the time.
    draw = html.figure_of if figures else lambda *given, **more: "<figure></figure>"
    with patch.object(html, "figure_of", draw):
        text = html.html_report(contents)
    page = Page(text)
    text.encode("utf-8")
    assert not {"script", "iframe", "object", "link", "form"} & page.tags.keys()
    ids = [known["id"] for _, known in page.attributes if "id" in known]
    assert len(ids) == len(set(ids))
    for tag, known in page.attributes:
        assert not [name for name in known if name.startswith("on")], tag
        for name in ("href", "src", "xlink:href"):
            assert known.get(name, "#").startswith(("#", "data:image/")), (tag, name)
        if known.get(name := "href", "").startswith("#"):
            assert known[name][1:] in ids
        if tag == "img":
            assert known["alt"]
        if tag == "svg":
            assert known["role"] == "img"
            assert len(known["aria-label"]) > 30
        if tag == "th":
            assert known["scope"] in ("row", "col")
    assert page.tags["h1"] == page.tags["main"] == 1
    assert ("html", {"lang": "en"}) in page.attributes
    assert any(known.get("name") == "viewport" for _, known in page.attributes)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    return page


def table_with(losses=LOSSES, n_tokens=None, keys=None, index=None, lengths=None, **known):
    table = LossTable.from_losses(losses, keys=keys, index=index, lengths=lengths)
    columns = table.columns()
    n_tokens = None if n_tokens is None else np.asarray(n_tokens, dtype=np.int32)
    provenance = replace(columns.provenance, **known)
    return LossTable(**vars(replace(columns, n_tokens=n_tokens, provenance=provenance)))


def report_of(table, rows=None, **more):
    samples = None
    if rows is not None:
        dataset = datasets.Dataset.from_list(rows) if type(rows) is list else rows
        samples = Samples(dataset, table.provenance)
    return contents_of(table, more.pop("weights", weights_of(table)), samples=samples, **more)


class Rows(list):
    """A data set of one's own."""


def rows_in(contents):
    return {
        section.name: [sample.row for sample in section.samples] for section in contents.sections
    }


# Which rows.


def test_rows_on_both_sides_of_tau_are_those_that_a_sort_finds():
    order = np.argsort(LOSSES, kind="stable").tolist()
    found = rows_in(report_of(table_with(), number=3))
    assert list(found) == ["easiest", "below_tau", "above_tau", "hardest"]
    assert found["easiest"] == order[:3]
    assert found["below_tau"] == order[ROWS // 2 - 3 : ROWS // 2]
    assert found["above_tau"] == order[ROWS // 2 : ROWS // 2 + 3]
    assert found["hardest"] == order[::-1][:3]


def test_a_row_whose_loss_is_tau_is_not_below_it_and_one_a_bit_lower_is():
    found = rows_in(report_of(table_with(np.array([1.0, 2.0, 3.0])), number=1))
    assert (found["below_tau"], found["above_tau"]) == ([0], [1])
    close = np.array([1.0, np.nextafter(np.float32(1), np.float32(2))], dtype=np.float32)
    found = rows_in(report_of(table_with(close), number=2))
    assert (found["below_tau"], found["above_tau"]) == ([0], [1])


def test_where_tau_is_not_the_median_rows_around_that_are_shown_too():
    table = table_with()
    found = rows_in(report_of(table, weights=table.weights(3.5), number=4))
    below = LOSSES[found["below_tau"]]
    above = LOSSES[found["above_tau"]]
    assert below.max() < 3.5 <= above.min()
    assert not ((below.max() < LOSSES) & (above.min() > LOSSES)).any()
    middle = np.argsort(np.abs(LOSSES - np.median(LOSSES)))[:4]
    assert sorted(found["around_median"]) == sorted(middle.tolist())
    given = report_of(table, weights=FlowWeights.from_weights(np.ones(ROWS)), number=1)
    assert list(rows_in(given)) == ["easiest", "around_median", "hardest"]


def test_rows_without_a_valid_loss_are_in_no_section():
    losses = LOSSES.copy()
    losses[:4] = np.nan, np.inf, -np.inf, -5.0
    shown = {
        row for rows in rows_in(report_of(table_with(losses), number=99)).values() for row in rows
    }
    assert shown == set(range(4, ROWS))


@pytest.mark.parametrize("most", [1 << 18, 10])
def test_each_text_is_shown_once_with_the_rows_that_have_it(most, monkeypatch):
    monkeypatch.setattr("flowdata.report.samples.MOST_ROWS_READ", most)
    losses = np.sort(LOSSES)
    rows = [{"id": row, "text": f"text {row // 10}"} for row in range(ROWS)]
    order = RANDOM.permutation(ROWS)
    contents = report_of(table_with(losses[order]), [rows[row] for row in order], number=3)
    easiest, *_, hardest = contents.sections
    assert [sample.content["id"] for sample in easiest.samples] == [0, 10, 20]
    assert [sample.content["id"] for sample in hardest.samples] == [59, 49, 39]
    assert [sample.rows_alike for sample in easiest.samples] == [10, 10, 10]
    text = page_of(contents).text
    assert ("at least 10 rows have this text" in text) == (most == 10)
    assert "10 rows have this text" in text
    assert "id: 49" in text
    among = "all rows" if most > 10 else "the rows that were read"
    assert json.loads(json_report(contents))["rows_alike_among"] == among


def test_of_a_table_that_names_its_columns_those_are_the_text():
    rows = [
        {"note": f"note {row}", "text": "the same", "body": f"body {row // 30}"}
        for row in range(ROWS)
    ]
    by_name = table_with(options=json.dumps({"prompt": None, "response": "body", "max_length": 5}))
    (easiest, *_) = report_of(by_name, rows).sections
    assert [sample.rows_alike for sample in easiest.samples] == [30, 30]
    (easiest, *_) = report_of(table_with(), rows).sections
    assert [sample.rows_alike for sample in easiest.samples] == [60]
    (easiest, *_) = report_of(
        table_with(), [{"a": row % 2, "b": 1} for row in range(ROWS)]
    ).sections
    assert [sample.rows_alike for sample in easiest.samples] == [30, 30]


@pytest.mark.parametrize("options", ['["body"]', "{"])
def test_a_table_whose_options_cannot_be_read_has_a_page_too(options):
    rows = [{"text": f"text {row}"} for row in range(ROWS)]
    text = page_of(report_of(table_with(options=options), rows)).text
    assert "Easiest samples" in text
    assert "option " not in text


# What it says.


def test_lengths_are_those_of_numpy_and_tokens_drawn_those_of_the_weights():
    lengths = np.minimum(RANDOM.lognormal(3, 1.5, ROWS).astype(np.int32), 400)
    lengths[7] = 4_000
    table = table_with(lengths=lengths)
    contents = report_of(table)
    found = contents.lengths
    draws = contents.weights.relative / contents.weights.total
    assert (found.longest, found.longest_row, found.tokens) == (4_000, 7, lengths.sum())
    assert found.median == np.quantile(lengths, 0.5, method="inverted_cdf")
    assert found.most == np.quantile(lengths, 0.95, method="inverted_cdf")
    assert found.expected_mean_of_draws == pytest.approx(draws @ lengths)
    assert found.expected_tokens == pytest.approx(ROWS * (draws @ lengths))
    assert found.empty == np.count_nonzero(lengths == 0)
    for bar in found.bars:
        rows = (lengths >= bar.shortest) & (lengths <= bar.longest)
        assert bar.rows == rows.sum()
        assert bar.expected_share_of_draws == pytest.approx(draws[rows].sum())
        share = (draws * lengths)[rows].sum() / (draws @ lengths)
        assert bar.expected_share_of_tokens == pytest.approx(share)
    assert sum(bar.rows for bar in found.bars) == ROWS
    assert "4,000 longest, row 7" in page_of(contents).text
    assert json.loads(json_report(contents))["lengths"]["longest_row"] == 7
    for same in (np.zeros(ROWS), np.full(ROWS, 9)):
        bars = report_of(table_with(lengths=same.astype(int))).lengths.bars
        assert [bar.rows for bar in bars] == [ROWS]
    scored = report_of(table_with(n_tokens=lengths)).lengths
    assert (scored.of, scored.tokens) == ("scored tokens of a row", found.tokens)
    assert report_of(table_with()).lengths is None


def test_rows_that_were_cut_or_dropped_are_counted_and_the_first_are_named():
    losses, n_tokens = LOSSES.copy(), np.full(ROWS, 3)
    losses[[4, 9, 20, 30]] = np.nan, np.nan, np.inf, -1.0
    n_tokens[9] = 0
    lengths = np.full(ROWS, 20)
    lengths[[2, 3, 9]] = 32
    known = {"truncated": 2, "options": json.dumps({"max_length": 32})}
    table = table_with(
        losses, n_tokens, lengths=lengths, keys=[f"k{row}" for row in range(ROWS)], **known
    )
    contents = report_of(table)
    left = contents.left_out
    assert (left.cut, left.max_length, left.as_long, left.dropped) == (2, 32, 3, 4)
    assert [each.row for each in left.first_as_long] == [2, 3, 9]
    first = [[each.row for each in cause.first] for cause in left.causes]
    assert first == [[9], [4], [20], [30]]
    text = page_of(contents).text
    assert "2 rows (3.3%) were longer than max_length=32 and were cut." in text
    assert "3 rows of just this length: the cut ones are among them" in text
    assert "no token, or label, was left to score. The first: row key 9 k9" in text
    text = page_of(report_of(table, [{"text": f"text <{row}>"} for row in range(ROWS)])).text
    assert "9 k9 text <9>" in text
    # Lengths that were counted otherwise say nothing.
    other = table_with(lengths=lengths, truncated=5, options=json.dumps({"max_length": 32}))
    assert report_of(other).left_out.as_long is None
    whole = page_of(report_of(table_with(truncated=0))).text
    assert "No row was cut. All rows have a valid loss" in whole
    assert "How many rows were cut is not known" in page_of(report_of(table_with())).text


def test_groups_that_starve_are_marked_unless_that_was_asked_for():
    names = np.where(np.quantile(LOSSES, 0.7) < LOSSES, "hard_$x$", "_easy")
    weights = table_with(lengths=np.arange(1, ROWS + 1)).weights(1.0, groups=names, shares="flow")
    text = page_of(report_of(table_with(), weights=weights), figures=True).text
    assert "hard_$x$ (starved)" in text
    # In the legend, where matplotlib leaves out what begins with a line, and reads formulas.
    assert " _easy (42)" in text
    assert "hard_$x$ (18)" in text
    assert "expected share of tokens drawn" in text
    asked = table_with().weights(groups=names, shares={"hard_$x$": 0.01, "_easy": 1})
    assert "(starved)" not in page_of(report_of(table_with(), weights=asked)).text


def test_a_proxy_a_selection_and_several_tables_are_named_as_what_they_are():
    small = table_with(model="org/small in place of org/large", loss="causal_lm")
    contents = report_of(small)
    text = page_of(contents).text
    assert "small in place of large: 60 samples" in text
    assert "losses of a small model, org/small, in place of org/large" in text
    assert json.loads(json_report(contents))["proxy"] == {
        "small": "org/small",
        "large": "org/large",
    }
    both = LossTable.concat([table_with(), table_with().select(range(10))])
    contents = report_of(both)
    assert "This table is a selection: 60 of 60 rows, 10 of 60 rows." in page_of(contents).text
    parts = json.loads(json_report(contents))["parts"]
    assert [(part["rows"], part["of"]) for part in parts] == [(60, 60), (10, 60)]


def test_rows_of_shards_are_named_by_shard_and_key():
    index = ShardIndex(
        ("a.tar", "<b>.tar"),
        np.repeat(np.arange(2, dtype=np.int32), ROWS // 2),
        pa.array([f"\0ffkey{row}" for row in range(ROWS)]),
        np.tile(np.arange(ROWS // 2) * 1024, 2).astype(np.int64),
        np.full(ROWS, 1024, dtype=np.int64),
        np.full(2, 1 << 20),
        np.array([False, False]),
    )
    contents = report_of(table_with(np.linspace(5, 1, ROWS) + LOSSES, index=index))
    assert "<b>.tar: ⟨U+DCFF⟩key" in page_of(contents).text
    assert json.loads(json_report(contents))["hardest"][0]["name"].endswith(
        f"key{rows_in(contents)['hardest'][0]}"
    )


def test_rows_with_keys_are_found_in_data_of_another_order_or_more_rows(tmp_path, capsys):
    rows = [
        {"id": f"r{row}", "text": f"text {row}", "source": "ab"[row % 2]} for row in range(ROWS)
    ]
    order = RANDOM.permutation(ROWS)[:40]
    keys = [rows[row]["id"] for row in order]
    table = table_with(LOSSES[order], keys=keys, key="id")
    path, data, page = (tmp_path / name for name in ("t.parquet", "d.jsonl", "p.html"))
    table.save(path)
    data.write_text("\n".join(map(json.dumps, rows)))
    command = ["inspect", str(path), "--data", str(data), "--by", "source", "--html", str(page)]
    assert main(command) == 0
    hardest = int(order[LOSSES[order].argmax()])
    assert f"text: text {hardest} source" in capsys.readouterr().out
    assert f"text {hardest}" in Page(page.read_text("utf-8")).text
    dataset = datasets.Dataset.from_list(rows)
    assert rows_of_table(table, dataset)["id"] == keys
    known = LossTable.from_losses(LOSSES, dataset=dataset, keys=dataset["id"])
    known = LossTable(
        **vars(replace(known.columns(), provenance=replace(known.provenance, key="id")))
    )
    assert rows_of_table(known, dataset) is dataset
    with pytest.raises(MismatchError, match="rows were changed"):
        rows_of_table(known, dataset.map(lambda row: {"text": "changed"}))
    with pytest.raises(MismatchError, match="1 of 40 rows of the table have a key that no row"):
        rows_of_table(table, dataset.select([row for row in range(ROWS) if row != order[3]]))


# What it withstands.


def test_hostile_rows_break_neither_the_page_nor_the_json_nor_the_terminal(tmp_path, capsys):
    bad = '</dd></article></main><script>alert(1)</script><img src=x onerror="alert(1)">'
    chat = [{"role": bad, "content": bad, "extra": None}, {"role": "\u202euser", "content": None}]
    texts = [
        bad,
        "\x00\x1b[31m\r\n\x9b\u202eright to left\u2066",
        "x" * 1_000_000,
        None,
        "\n" * 90,
        "مرحبا",
    ]
    count = len(texts)
    columns = {
        "text": texts,
        "messages": [chat, [], None, chat * 40, chat, chat],
        f"{bad}\x07": [PIXEL, b"\xff\xd8\xffno image", b"", None, b"\x00" * 200_000, b"raw"],
        "image": [{"bytes": PIXEL, "path": bad}] * count,
        "ids": [list(range(1_000))] * count,
        "source": [bad, "\x1b]0;\x07", "$\\frac{1}$", "_hidden", None, "y" * 10_000],
    }
    data, path, page = (tmp_path / name for name in ("d.parquet", "t.parquet", "p.html"))
    pq.write_table(pa.table(columns), data)
    table_with(np.arange(1, count + 1), model=bad, loss="\x1b[0m").save(path)
    command = ["inspect", str(path), "--data", str(data), "--by", "source", "--html", str(page)]
    assert main(command) == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", capsys.readouterr().out)
    first = page.read_bytes()
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["groups"]
    assert page.read_bytes() == first
    assert len(first) < 500_000
    dataset = datasets.Dataset(pa.table(columns))
    contents = report_of(LossTable.load(path), dataset, groups=groups_of(dataset, "source"))
    read = page_of(contents, figures=True)
    assert "␛[31m\n⟨U+009B⟩⟨U+202E⟩right" in "".join(read.texts)
    assert "999,500 more characters, 3,500 of them shown" in read.text
    assert "79 more characters" in read.text
    assert bad in read.text
    assert read.tags["img"] > count
    assert "more turns" in read.text
    # Beside the scripts that are texts there is none.
    assert "alert(1)" in read.text


def test_rows_of_any_kind_are_shown():
    rows = [{"input_ids": [1, 2, 3] * 30, "labels": [row] * 90} for row in range(ROWS)]
    assert "90 numbers]" in page_of(report_of(table_with(), rows)).text

    kinds = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"])})
    labels = {"label": [row % 2 for row in range(ROWS - 1)] + [None]}
    text = page_of(report_of(table_with(), datasets.Dataset.from_dict(labels, features=kinds))).text
    assert "30 rows have this text label 0 (cat)" in text
    assert "29 rows have this text label 1 (dog)" in text
    # Of no datasets.Dataset, with values that are not JSON's.
    samples = [{"text": complex(0, row), "label": {row}} for row in range(ROWS)]
    (easiest, *_) = (contents := report_of(table_with(), Rows(samples))).sections
    assert f"label {{{easiest.samples[0].row}}}" in page_of(contents).text
    one = table_with(np.ones(1, dtype=np.float32))
    assert "1 samples" in page_of(report_of(one, [{"text": "only"}])).text
