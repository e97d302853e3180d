"""mask_tokens: labels are -100 where a function of the token losses says no, for all readers."""

import copy
import itertools

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from weighted_language import make_rows, padded

from flowdata import (
    FlowDataset,
    FlowDataWarning,
    FlowPacks,
    InvalidLossError,
    LossTable,
    MismatchError,
    PackCollator,
    mask_tokens,
)
from flowdata.reweight import reweight

ROWS = make_rows()
COUNTS = np.array([len(row["labels"]) - 2 for row in ROWS], dtype=np.int32)
OFFSETS = np.cumsum([0, *COUNTS])


def table_of(losses, tokens, counts=COUNTS):
    losses = np.asarray(losses, dtype=np.float32)
    return LossTable(
        losses, LossTable.from_losses(losses).provenance, n_tokens=np.asarray(counts, np.int32),
        token_losses=np.asarray(tokens, dtype=np.float32),
    )  # fmt: skip


TOKENS = np.random.default_rng(0).permutation(OFFSETS[-1]) / 10
# So that each row keeps a token, and loses one.
TOKENS[OFFSETS[:-1]], TOKENS[OFFSETS[1:] - 1] = 0.1, 9.0
TABLE = table_of([1.0 + row % 3 for row in range(len(ROWS))], TOKENS)


def keep(losses, tau):
    return losses <= 2.0


def masked_labels(row):
    labels = np.array(ROWS[row]["labels"])
    labels[2:][TOKENS[OFFSETS[row] : OFFSETS[row + 1]] > 2.0] = -100
    return labels.tolist()


MASKED = [masked_labels(row) for row in range(len(ROWS))]
KINDS = {
    "lists": lambda: copy.deepcopy(ROWS),
    "tensors": lambda: [{k: torch.tensor(v) for k, v in row.items()} for row in ROWS],
    "arrays": lambda: [{k: np.array(v, np.int32) for k, v in row.items()} for row in ROWS],
    "datasets": lambda: datasets.Dataset.from_list(ROWS),
    "datasets, torch": lambda: datasets.Dataset.from_list(ROWS).with_format("torch"),
    "datasets, some columns": lambda: datasets.Dataset.from_list(ROWS).with_format(
        "numpy", columns=["labels"], output_all_columns=True
    ),
    "datasets, chosen": lambda: datasets.Dataset.from_list([*ROWS, *ROWS]).select(
        range(len(ROWS), 2 * len(ROWS))
    ),
    "datasets, made when read": lambda: datasets.Dataset.from_list(ROWS).with_transform(
        lambda rows: rows
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_masked_and_all_else_is_as_it_was(kind):
    data = KINDS[kind]()
    masked = mask_tokens(data, TABLE, keep)
    assert len(masked) == len(ROWS)
    for row in (*range(len(ROWS)), -1):
        found, given = masked[row], data[row]
        assert list(found["labels"]) == MASKED[row]
        assert list(given["labels"]) == ROWS[row]["labels"]
        assert type(found["labels"]) is type(given["labels"])
        assert getattr(found["labels"], "dtype", None) == getattr(given["labels"], "dtype", None)
        assert list(found["input_ids"]) == ROWS[row]["input_ids"]
        assert list(found) == list(given)
    many = masked.__getitems__([5, 0])
    assert [list(row["labels"]) for row in many] == [MASKED[5], MASKED[0]]
    if not kind.startswith("datasets"):
        assert [list(row["labels"]) for row in masked[-2:]] == MASKED[-2:]
    if kind.startswith("datasets, made"):
        return
    if kind.startswith("datasets"):
        assert isinstance(masked, datasets.Dataset)
        assert (masked.features, masked.format) == (data.features, data.format)
    with pytest.raises(IndexError):
        masked[len(ROWS)]


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
@pytest.mark.parametrize("mask", [None, "completion_mask", "assistant_masks"])
def test_rows_without_labels_get_some(kind, mask):
    rows = [{"input_ids": row["input_ids"]} for row in ROWS]
    counts = np.array([len(row["input_ids"]) - 1 for row in rows])
    if mask:
        learned = [[int(label >= 0) for label in row["labels"]] for row in ROWS]
        rows = [row | {mask: flags} for row, flags in zip(rows, learned, strict=True)]
        assert [row["labels"] for row in mask_tokens(kind(rows), TABLE, keep)] == MASKED
        return
    tokens = np.where(np.arange(counts.sum()) % 2, 9.0, 0.0)
    masked = mask_tokens(kind(rows), table_of(TABLE.losses, tokens, counts), keep)
    for row, own in zip(masked, np.split(tokens, np.cumsum(counts)[:-1]), strict=True):
        ids = np.array(row["input_ids"])
        assert row["labels"] == [ids[0], *np.where(own > 2, -100, ids[1:])]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["lists", "datasets"])
def test_loaders_draws_and_packs_read_masked_labels(kind, workers):
    masked = mask_tokens(KINDS[kind](), TABLE, keep)
    by_ids = {tuple(row["input_ids"]): labels for row, labels in zip(ROWS, MASKED, strict=True)}
    lengths = [len(row["input_ids"]) for row in ROWS]
    options = {"num_workers": workers}
    for data in (masked, FlowDataset(masked, TABLE.weights())):
        for batch in DataLoader(data, 3, collate_fn=padded, **options):
            for ids, attention, labels in zip(
                batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True
            ):
                size = int(attention.sum())
                assert labels[:size].tolist() == by_ids[tuple(ids[:size].tolist())]
    packs = FlowPacks(masked, TABLE.weights(), lengths, max_length=24)
    seen = 0
    for batch in DataLoader(packs, 2, collate_fn=PackCollator(flatten=True), **options):
        ids, labels, positions = (
            batch[name][0] for name in ("input_ids", "labels", "position_ids")
        )
        bounds = [*np.flatnonzero(positions == 0), len(ids)]
        for start, stop in itertools.pairwise(bounds):
            expected = by_ids[tuple(ids[start:stop].tolist())]
            assert labels[start:stop].tolist() == expected
            seen += 1
    assert seen == len(ROWS)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_unmodified_sft_trainer_learns_the_tokens_that_are_kept(tmp_path, when):
    from frameworks_language import make_tokenizer
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=4, max_steps=1,
        train_sampling_strategy="sequential", learning_rate=0.0, report_to=[], disable_tqdm=True,
        logging_steps=1, save_strategy="no",
    )  # fmt: skip
    data = datasets.Dataset.from_list([row | {"source": "a"} for row in ROWS])
    if when == "before":
        data = mask_tokens(data, TABLE, keep)
    trainer = SFTTrainer(model, args, train_dataset=data, processing_class=make_tokenizer())
    if when == "after":
        trainer.train_dataset = mask_tokens(trainer.train_dataset, TABLE, keep)
    trainer.train()
    batch = padded([row | {"labels": own} for row, own in zip(ROWS[:4], MASKED[:4], strict=True)])
    expected = model(**batch).loss.item()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert model(**padded(ROWS[:4])).loss.item() != pytest.approx(expected, rel=1e-4)


def test_rows_without_a_valid_loss_are_masked_if_asked():
    losses, tokens = TABLE.losses.copy(), TABLE.token_losses.copy()
    losses[1], tokens[OFFSETS[2]] = np.nan, -1.0
    bad = table_of(losses, tokens)
    with pytest.raises(InvalidLossError, match=r"tokens in rows \[1, 2\]"):
        mask_tokens(ROWS, bad, keep)
    with pytest.warns(FlowDataWarning, match=r"in 1 of 8 rows no label is left \(rows 1\)"):
        masked = mask_tokens(ROWS, bad, keep, on_invalid="drop")
    assert set(masked[1]["labels"]) == {-100}
    assert masked[2]["labels"] == [-100, -100, -100, *MASKED[2][3:]]


def test_the_temperature_is_given_to_the_function():
    seen = []
    for temperature in ("median", 3.0):
        mask_tokens(
            ROWS,
            TABLE,
            lambda losses, tau: seen.append(tau) or losses < 99,
            temperature=temperature,
        )
    assert seen == pytest.approx([np.median(TABLE.token_losses), 3.0])


def test_what_frameworks_call_on_a_data_set_reaches_the_one_inside():
    class Counting(list):
        def set_epoch(self, epoch):
            self.epoch = epoch

    inside = Counting(ROWS)
    masked = mask_tokens(inside, TABLE, keep)
    masked.set_epoch(3)
    assert inside.epoch == 3
    assert not hasattr(copy.deepcopy(masked), "column_names")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(ROWS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mask_tokens(ROWS[:-1], TABLE, keep), MismatchError, "7 rows, but there are 8"),
        (
            lambda: mask_tokens(ROWS, TABLE.losses, keep),
            TypeError,
            "needs a LossTable, got ndarray",
        ),
        (
            lambda: mask_tokens(ROWS, LossTable.from_losses(TABLE.losses), keep),
            ValueError,
            r"score with CausalLM\(token_losses=True\)",
        ),
        (lambda: mask_tokens(ROWS, TABLE, lambda x, _: x > 99), InvalidLossError, "no to all"),
        (lambda: mask_tokens(ROWS, TABLE, lambda x, _: x), ValueError, "must give booleans"),
        (lambda: mask_tokens(ROWS, TABLE, "x > 2"), TypeError, "function must be called"),
        (lambda: mask_tokens(Stream(), TABLE, keep), TypeError, "Stream has no rows by number"),
        (
            lambda: mask_tokens(FlowDataset(ROWS, TABLE), TABLE, keep),
            TypeError,
            r"items of a FlowDataset are draws: mask its rows, FlowDataset\(mask_tokens",
        ),
        (
            lambda: mask_tokens(reweight(ROWS, TABLE)[0], TABLE, keep)[0],
            TypeError,
            "row 0 is a WeightedItem: labels are masked in rows that are dicts",
        ),
        (
            lambda: mask_tokens(datasets.Dataset.from_dict({"text": ["a"] * 8}), TABLE, keep),
            TypeError,
            r"has columns \['text'\], and no labels .* trainer.train_dataset",
        ),
        (
            lambda: mask_tokens([(row["labels"], 3) for row in ROWS], TABLE, keep)[1],
            TypeError,
            "row 1 is a tuple",
        ),
    ],
)
def test_wrong_calls_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_of_a_stored_data_set_each_mask_is_kept_in_the_cache(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    stored = datasets.load_from_disk(str(tmp_path))
    first = mask_tokens(stored, TABLE, keep)
    files = set(tmp_path.glob("cache-*"))
    assert len(files) == 1
    other = mask_tokens(stored, TABLE, lambda losses, tau: losses < 99)
    assert [first["labels"][:], other["labels"][:]] == [MASKED, [row["labels"] for row in ROWS]]
    again = mask_tokens(datasets.load_from_disk(str(tmp_path)), TABLE, keep)
    assert again["labels"][:] == MASKED
    assert len(set(tmp_path.glob("cache-*"))) == 2


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list])
def test_a_table_of_other_labels_is_found_out(kind):
    other = [*ROWS[:3], {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, *ROWS[4:]]
    with pytest.raises(MismatchError, match=r"row 3 has 2 labels .* but losses of 10 response"):
        [*mask_tokens(kind(other), TABLE, keep)]


def test_the_trainer_takes_unused_columns_out_of_masked_rows(tmp_path):
    rows = [row | {"source": "a"} for row in ROWS]
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1)
    )  # fmt: skip
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=1, report_to=[], disable_tqdm=True,
        save_strategy="no",
    )  # fmt: skip
    seen = []

    def collate(items):
        seen.extend(set(item) for item in items)
        return padded(items)

    data = mask_tokens(rows, TABLE, keep)
    Trainer(model, args, train_dataset=data, data_collator=collate).train()
    assert {frozenset(names) for names in seen} == {frozenset({"input_ids", "labels"})}
