"""draw_from: the weights of a row stay its own, whatever a trainer of TRL does to the rows."""

from types import SimpleNamespace

import datasets
import frameworks_language
import numpy as np
import pytest
from frameworks_common import ROWS, WEIGHTS

import flowdata
from flowdata import FlowDataset, FlowWeights, MismatchError
from flowdata.errors import FlowDataWarning
from flowdata.frameworks.trl import ROW, draw_from, kept_weights, number_rows

LONG = {2, 3, 11}
"""Rows whose prompt leaves no room for a completion."""
KEPT = [row for row in range(ROWS) if row not in LONG]
MOST = 8


def prompt(row):
    return f"row{row}" + " and" * (MOST if row in LONG else row % 3)


def turn(role, text):
    return [{"role": role, "content": text}]


COLUMNS = {
    "SFT": lambda row: {"prompt": prompt(row), "completion": " so on"},
    "SFT, turns": lambda row: {
        "prompt": turn("user", prompt(row)),
        "completion": turn("assistant", " so on"),
    },
    "DPO": lambda row: {"prompt": prompt(row), "chosen": " so on", "rejected": " so"},
    "Reward": lambda row: {"chosen": prompt(row) + " so on", "rejected": prompt(row) + " so"},
    "KTO": lambda row: {"prompt": prompt(row), "completion": " so on", "label": row % 2 == 0},
    "KTO, pairs": lambda row: {"prompt": prompt(row), "chosen": " so on", "rejected": " so"},
}


def table(kind):
    return datasets.Dataset.from_list([COLUMNS[kind](row) for row in range(ROWS)])


def trainer_of(kind, data, folder, **options):
    import trl
    from transformers import LlamaForSequenceClassification

    tokenizer = frameworks_language.make_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        "{% if not add_generation_prompt %}[EOS]{% endif %}"
    )
    model = frameworks_language.make_model(len(tokenizer))
    name = kind.partition(",")[0]
    if name == "Reward":
        model.config.num_labels, model.config.pad_token_id = 1, tokenizer.pad_token_id
        model = LlamaForSequenceClassification(model.config)
    config = getattr(trl, f"{name}Config")(
        str(folder),
        use_cpu=True,
        bf16=False,
        max_length=MOST,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    if name in ("DPO", "KTO"):
        options = {"ref_model": frameworks_language.make_model(len(tokenizer))}
    else:
        options = {}
    given = {"args": config, "train_dataset": data, "processing_class": tokenizer}
    return getattr(trl, f"{name}Trainer")(model, **given, **options)


def row_of(item):
    """The row that a tokenized item was made from, which its first token tells."""
    ids = next(item[name] for name in ("input_ids", "prompt_ids", "chosen_ids") if name in item)
    return ids[0] - frameworks_language.make_tokenizer().convert_tokens_to_ids("row0")


def assert_weights_are_those_of_the_rows(drawn, weights=WEIGHTS):
    rows = [row_of(drawn.dataset[item]) for item in range(len(drawn.dataset))]
    np.testing.assert_allclose(drawn.plan.weights.values, weights[rows])
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("numbered", [True, False], ids=["numbered", "as they are"])
@pytest.mark.parametrize("kind", ["SFT", "SFT, turns", "DPO", "Reward"])
def test_rows_that_trl_drops_take_their_weights_with_them(kind, numbered, tmp_path):
    data = table(kind)
    trainer = trainer_of(kind, number_rows(data) if numbered else data, tmp_path)
    with pytest.warns(FlowDataWarning, match=r"3 of the \d+ rows .*\(rows 2, 3, 11\)"):
        drawn = draw_from(trainer, WEIGHTS)
    assert assert_weights_are_those_of_the_rows(drawn) == KEPT
    assert ROW not in drawn.column_names
    assert trainer.train_dataset is drawn


@pytest.mark.slow
def test_weights_follow_rows_that_are_mapped_again_after_some_are_dropped(tmp_path):
    with pytest.warns(FlowDataWarning, match="rows 2, 3, 11"):
        drawn = draw_from(trainer_of("KTO", number_rows(table("KTO")), tmp_path), WEIGHTS)
    assert assert_weights_are_those_of_the_rows(drawn) == KEPT
    with pytest.raises(MismatchError, match="cannot be told which"):
        draw_from(trainer_of("KTO", table("KTO"), tmp_path), WEIGHTS)


@pytest.mark.slow
def test_both_rows_that_trl_makes_of_a_pair_have_its_weight(tmp_path):
    trainer = trainer_of("KTO, pairs", number_rows(table("KTO, pairs")), tmp_path)
    with pytest.warns(FlowDataWarning, match="rows 2, 3, 11"):
        drawn = draw_from(trainer, WEIGHTS)
    assert sorted(assert_weights_are_those_of_the_rows(drawn)) == sorted(2 * KEPT)


@pytest.mark.slow
def test_rows_that_trl_shuffles_are_followed_by_their_numbers(tmp_path):
    trainer = trainer_of("SFT", number_rows(table("SFT")), tmp_path, shuffle_dataset=True)
    with pytest.warns(FlowDataWarning, match="rows 2, 3, 11"):
        drawn = draw_from(trainer, WEIGHTS)
    rows = assert_weights_are_those_of_the_rows(drawn)
    assert sorted(rows) == KEPT != rows


@pytest.mark.slow
def test_a_run_trains_on_the_kept_rows_and_on_nothing_else(tmp_path):
    trainer = trainer_of(
        "SFT", table("SFT"), tmp_path, max_steps=4, train_sampling_strategy="sequential"
    )
    with pytest.warns(FlowDataWarning, match="rows 2, 3, 11"):
        drawn = draw_from(trainer, WEIGHTS, seed=1)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda items: seen.extend(map(row_of, items)) or collate(items)
    trainer.train()
    expected = [KEPT[place] for epoch in range(2) for place in drawn.plan.at_epoch(epoch)]
    assert seen == expected[: len(seen)]
    assert len(seen) >= len(KEPT)


def given(data, **args):
    return SimpleNamespace(train_dataset=data, args=SimpleNamespace(**args))


def rows_of_numbers(numbers=range(ROWS)):
    return datasets.Dataset.from_dict({"number": list(numbers)})


CHANGES = {
    "filtered": lambda data: data.filter(lambda row: row["number"] % 3 > 0),
    "sorted": lambda data: data.sort("number", reverse=True),
    "shuffled": lambda data: data.shuffle(seed=3),
    "selected": lambda data: data.select([5, 5, 1]),
    "split": lambda data: data.train_test_split(0.3, seed=1)["train"],
    "taken apart": lambda data: data.map(
        lambda rows: {name: rows[name] * 2 for name in rows}, batched=True
    ),
    "put together": lambda data: datasets.concatenate_datasets([data, data.select([0])]),
    "another format": lambda data: data.filter(lambda row: row["number"] > 4).with_format("torch"),
}


@pytest.mark.filterwarnings("ignore:.* are not among those that the trainer has kept")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_numbered_rows_keep_their_weights_whatever_is_done_to_them(change):
    changed = change(number_rows(rows_of_numbers()))
    drawn = draw_from(given(changed), WEIGHTS)
    numbers = [int(number) for number in changed["number"][:]]
    np.testing.assert_allclose(drawn.plan.weights.values, WEIGHTS[numbers])


def test_rows_of_weight_0_that_are_dropped_are_no_matter():
    weights = WEIGHTS.copy()
    weights[[4, 9]] = 0.0
    kept = rows_of_numbers().filter(lambda row: row["number"] not in (4, 9))
    drawn = draw_from(given(kept), weights)
    assert drawn.plan.weights.values.tolist() == weights[weights > 0].tolist()


def test_rows_without_a_valid_loss_that_are_dropped_are_no_matter():
    losses = np.arange(1.0, ROWS + 1)
    losses[4] = np.nan
    weights = FlowWeights.from_losses(losses, on_invalid="drop")
    kept = rows_of_numbers().filter(lambda row: row["number"] != 4)
    drawn = draw_from(given(kept), weights)
    assert drawn.plan.weights.values.tolist() == np.delete(weights.values, 4).tolist()


def test_weights_of_rows_that_are_all_there_stay_what_they_are():
    weights = FlowWeights.from_losses(np.arange(1.0, ROWS + 1))
    for data in (rows_of_numbers(), number_rows(rows_of_numbers())):
        assert kept_weights(given(data), weights) is weights


@pytest.mark.parametrize("normalize", [None, "mean", "max", "sum"])
def test_the_scale_of_the_weights_that_are_kept_is_that_which_was_asked_for(normalize):
    losses = np.arange(1.0, ROWS + 1)
    weights = FlowWeights.from_losses(losses, normalize=normalize)
    with pytest.warns(FlowDataWarning, match="rows 0, 1, 2, 3, 4"):
        kept = kept_weights(given(number_rows(rows_of_numbers()).select(range(5, ROWS))), weights)
    expected = np.exp(-losses / np.median(losses))[5:]
    scale = {None: 1.0, "mean": expected.mean(), "max": expected.max(), "sum": expected.sum()}
    np.testing.assert_allclose(kept.values, expected / scale[normalize])


def test_of_many_dropped_rows_the_first_are_named():
    kept = rows_of_numbers().filter(lambda row: row["number"] >= 8)
    text = rf"8 of the {ROWS} rows .*\(rows 0, 1, 2, 3, 4, \.\.\.\).*% of the weight"
    with pytest.warns(FlowDataWarning, match=text):
        draw_from(given(kept), WEIGHTS)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (rows_of_numbers(range(ROWS + 1)), MismatchError, "number_rows"),
        (rows_of_numbers(range(ROWS - 1)), MismatchError, "number_rows"),
        (rows_of_numbers().to_iterable_dataset(), TypeError, "a stream has no rows by number"),
        (datasets.DatasetDict(train=rows_of_numbers()), TypeError, "several splits"),
        (None, TypeError, "NoneType"),
        (FlowDataset(range(ROWS), WEIGHTS), ValueError, "call draw_from once"),
        (number_rows(rows_of_numbers(range(ROWS + 1))), MismatchError, "numbers of other rows"),
        (rows_of_numbers().add_column(ROW, [0.5] * ROWS), MismatchError, "numbers of other rows"),
    ],
)
def test_rows_that_weights_cannot_be_told_for_are_refused(data, error, text):
    with pytest.raises(error, match=text):
        draw_from(given(data), WEIGHTS)


@pytest.mark.parametrize("data", [rows_of_numbers().to_iterable_dataset(), [1, 2]])
def test_only_the_rows_of_one_table_can_be_numbered(data):
    with pytest.raises(TypeError, match=r"datasets\.Dataset is needed"):
        number_rows(data)


def test_rows_are_numbered_once():
    with pytest.raises(ValueError, match="already"):
        number_rows(number_rows(rows_of_numbers()))


@pytest.mark.parametrize("setting", ["packing", "shuffle_dataset"])
def test_rows_that_are_packed_or_moved_without_numbers_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=True"):
        draw_from(given(rows_of_numbers(), **{setting: True}), WEIGHTS)


@pytest.mark.slow
def test_prompts_that_are_generated_from_are_drawn_by_weight(tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = frameworks_language.make_tokenizer()
    tokenizer.padding_side = "left"
    seen = []
    trainer = GRPOTrainer(
        frameworks_language.make_model(len(tokenizer)).float(),
        reward_funcs=lambda prompts, **_: seen.extend(prompts) or [0.0] * len(prompts),
        args=GRPOConfig(
            str(tmp_path),
            use_cpu=True,
            bf16=False,
            num_generations=2,
            per_device_train_batch_size=4,
            max_completion_length=2,
            num_train_epochs=2,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": [f"row{row} and" for row in range(8)]}),
        processing_class=tokenizer,
    )
    assert trainer.args.shuffle_dataset
    drawn = draw_from(trainer, WEIGHTS[:8], seed=0)
    trainer.train()
    rows = [int(text.split()[0].removeprefix("row")) for text in seen]
    for epoch in range(2):
        generated = rows[16 * epoch : 16 * (epoch + 1)]
        assert sorted(generated) == sorted(2 * drawn.plan.at_epoch(epoch)[:].tolist())


@pytest.mark.filterwarnings("ignore:.* are not among those that the trainer has kept")
def test_rows_that_are_kept_keep_their_groups_and_their_share_in_each_epoch():
    losses, groups = -np.log(WEIGHTS), np.array(["even", "odd"] * ROWS)[:ROWS]
    weights = FlowWeights.from_losses(losses, groups=groups, shares="equal")
    changed = CHANGES["filtered"](number_rows(rows_of_numbers()))
    drawn = draw_from(given(changed), weights, epoch_size=50)
    kept, rows = drawn.plan.weights, np.array(changed["number"][:])
    assert [kept.group_names[code] for code in kept.groups] == groups[rows].tolist()
    share = kept.relative[kept.groups == 0].sum() / kept.total
    for epoch in range(10):
        counts = drawn.plan.at_epoch(epoch).counts()
        assert abs(counts[kept.groups == 0].sum() - 50 * share) < 1.0
    figures = flowdata.Monitor(drawn, in_order=True)
    figures.step(50)
    assert figures.figures()["flowdata/draws/group_even"] == pytest.approx(share, abs=0.02)
    assert "flowdata/draws/decile_1" in figures.figures()
