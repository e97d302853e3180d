"""Packs of weighted rows: their loss is the weighted loss of the samples, each alone."""

import numpy as np
import pytest
import torch
from packed_samples import joined, samples_of
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening
from weighted_language import make_rows, padded, small_model, spread_weights, tables

from flowdata import FlowPacks, FlowPackSampler, MismatchError, PackCollator, WeightedTarget
from flowdata import pack_rows as pack
from flowdata.reweight import plain, reweight

ROWS = make_rows()
LENGTHS = [len(row["input_ids"]) for row in ROWS]
MAX_LENGTH, DRAWS = 30, 16
PACKED = {
    "packs, padded": (FlowPacks, PackCollator(pad_token_id=3)),
    "packs, in one row": (FlowPacks, PackCollator(flatten=True)),
    "rows": (FlowPackSampler, pack),
    "rows, by transformers": (FlowPackSampler, DataCollatorWithFlattening()),
}
WEIGHTED = {
    "sample": {"level": "sample"},
    "sample, alpha": {"level": "sample", "alpha": 0.5},
    "token": {"level": "token"},
    "token, temperature": {"level": "token", "temperature": 1.0},
}


@pytest.fixture(scope="module")
def model():
    made = small_model()
    # Beside a cache transformers makes no mask of positions.
    made.config.use_cache = False
    return made


@pytest.fixture(scope="module")
def table(model):
    return tables(model, ROWS)


def loader_of(kind, collate, table, options, entry=None):
    """A loader of weighted packs, and all rows that it draws."""
    weights = table if options["level"] == "token" else table.weights()
    data, collate = reweight(ROWS, weights, collate_fn=collate, entry=entry, **options)
    drawn = table.weights() if "alpha" in options else np.ones(len(ROWS))
    draws = {"alpha": options["alpha"]} if "alpha" in options else {}
    draws["epoch_size"] = DRAWS
    if kind is FlowPacks:
        packs = FlowPacks(data, drawn, LENGTHS, MAX_LENGTH, **draws)
        loader = DataLoader(packs, 2, collate_fn=collate)
    else:
        packs = FlowPackSampler(drawn, LENGTHS, MAX_LENGTH, dataset=data, **draws)
        loader = DataLoader(data, batch_sampler=packs, collate_fn=collate)
    return loader, joined(each.tolist() for each in packs.plan.at_epoch(0))


def summed(model, batch, labels):
    """The summed loss of a batch, as an unmodified loop computes it."""
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    width = logits.shape[-1]
    return F.cross_entropy(
        logits[:, :-1].reshape(-1, width), labels[:, 1:].reshape(-1), reduction="sum"
    )


def by_hand(model, rows, table, options):
    """Weight x loss of the tokens of rows, padded."""
    batch = padded([ROWS[row] for row in rows])
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch["labels"][:, 1:], reduction="none"
    )
    made = {name: options[name] for name in ("temperature",) if name in options}
    weights = spread_weights(table, rows, batch, options["level"], **made)
    if "alpha" in options:
        # What is drawn by w ** 0.5 counts w ** 0.5 times as much.
        own = torch.tensor(table.weights().residual(0.5), dtype=torch.float32)
        weights = own[rows][:, None].expand(weights.shape)
    return (losses * weights[:, 1:]).sum()


@pytest.mark.parametrize("weighted", WEIGHTED)
@pytest.mark.parametrize("packed", PACKED)
def test_the_loss_of_packs_is_that_of_their_weighted_samples(model, table, packed, weighted):
    options = WEIGHTED[weighted]
    loader, rows = loader_of(*PACKED[packed], table, options)
    found = torch.zeros(())
    for batch in loader:
        assert isinstance(batch["labels"], WeightedTarget)
        found = found + summed(model, batch, batch["labels"])
    expected = by_hand(model, rows, table, options)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [
        torch.cat([part.flatten() for part in torch.autograd.grad(loss, [*model.parameters()])])
        for loss in (found, expected)
    ]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()
    unweighted = by_hand(model, rows, table, {"level": "none"})
    assert abs(unweighted - expected) > 1e-4 * expected


@pytest.mark.parametrize("packed", PACKED)
def test_weights_may_be_an_entry_of_the_batch(model, table, packed):
    options = WEIGHTED["sample"]
    loader, rows = loader_of(*PACKED[packed], table, options, entry="w")
    found = 0.0
    for batch in loader:
        labels = batch["labels"]
        assert type(labels) is torch.Tensor
        assert batch["w"].shape == labels.shape
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        found += (losses * batch["w"][:, 1:]).sum().item()
    assert found == pytest.approx(by_hand(model, rows, table, options).item(), rel=1e-5)


def test_rows_that_are_cut_keep_the_weights_of_their_first_tokens(model, table):
    data, collate = reweight(ROWS, table, level="token", collate_fn=PackCollator())
    packs = FlowPacks(data, np.ones(len(ROWS)), LENGTHS, 6, epoch_size=DRAWS, too_long="truncate")
    tokens = table.token_weights(normalize="mean").values
    offsets = table.token_offsets
    [row] = np.flatnonzero(np.array(LENGTHS) == 12)
    own = torch.tensor(tokens[offsets[row] :][:4], dtype=torch.float32)
    seen = 0
    for batch, rows in zip(DataLoader(packs, collate_fn=collate), packs.plan, strict=True):
        if rows.tolist() == [row]:
            assert samples_of({name: plain(part) for name, part in batch.items()}) == [
                (ROWS[row]["input_ids"][:6], ROWS[row]["labels"][:6])
            ]
            assert torch.allclose(batch["labels"].weights[0, 2:], own)
            seen += 1
    assert seen


def test_weights_of_tokens_of_ones_own_are_packed_as_those_of_a_table(table):
    tokens, bounds = table.token_weights().values, table.token_offsets[1:-1]
    # Of each label but the first, as the authors have them.
    column = [[1.0, *own] for own in np.split(tokens, bounds)]
    batches = []
    for weights in (table, column):
        data, collate = reweight(ROWS, weights, level="token", collate_fn=PackCollator())
        packs = FlowPacks(data, np.ones(len(ROWS)), LENGTHS, MAX_LENGTH)
        batches.append([batch["labels"] for batch in DataLoader(packs, 2, collate_fn=collate)])
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-6, atol=0)
        assert one.weights.count_nonzero() == (plain(one) >= 0).sum()


def test_a_table_of_other_labels_is_refused(table):
    rows = [row | {"labels": row["input_ids"]} for row in ROWS]
    data, collate = reweight(rows, table, level="token", collate_fn=PackCollator())
    packs = FlowPacks(data, np.ones(len(ROWS)), LENGTHS, MAX_LENGTH)
    with pytest.raises(MismatchError, match="was scored with other labels or another length"):
        next(iter(DataLoader(packs, collate_fn=collate)))
    data, collate = reweight(rows, table, level="token", collate_fn=pack)
    sampler = FlowPackSampler(np.ones(len(ROWS)), LENGTHS, MAX_LENGTH)
    with pytest.raises(ValueError, match="was scored with other labels or another length"):
        next(iter(DataLoader(data, batch_sampler=sampler, collate_fn=collate)))


def test_rows_in_one_row_that_are_not_those_of_the_items_are_refused(table):
    def reversed_pack(rows):
        return pack(rows[::-1])

    def shifted(rows):
        batch = pack(rows)
        batch["input_ids"] = batch["input_ids"].roll(1)
        return batch

    sampler = FlowPackSampler(np.ones(len(ROWS)), LENGTHS, MAX_LENGTH)

    def left_out(rows):
        return pack(rows[:-1])

    for collate_fn in (reversed_pack, shifted, left_out):
        data, collate = reweight(ROWS, table.weights(), collate_fn=collate_fn)
        with pytest.raises(ValueError, match="it needs one row for each sample"):
            list(DataLoader(data, batch_sampler=sampler, collate_fn=collate))


def test_weights_go_with_their_own_collate_function_and_alpha(table):
    weights = table.weights()
    data, _ = reweight(ROWS, weights, alpha=0.5)
    packs = FlowPacks(data, weights, LENGTHS, MAX_LENGTH, alpha=0.5)
    with pytest.raises(TypeError, match="these packs have weights, which belong to the collate_fn"):
        next(iter(DataLoader(packs, collate_fn=PackCollator())))
    sampler = FlowPackSampler(weights, LENGTHS, MAX_LENGTH, alpha=0.5, dataset=data)
    with pytest.raises(TypeError, match="these rows have weights, which belong to the collate_fn"):
        next(iter(DataLoader(data, batch_sampler=sampler, collate_fn=pack)))
    for make in (
        lambda: FlowPacks(data, weights, LENGTHS, MAX_LENGTH),
        lambda: FlowPackSampler(weights, LENGTHS, MAX_LENGTH, dataset=data),
    ):
        with pytest.raises(MismatchError, match=r"weighted for draws of alpha=0\.5"):
            make()
    with pytest.raises(TypeError, match="the items of a FlowPacks are draws"):
        reweight(packs, weights)


@pytest.mark.guard
def test_rows_that_are_drawn_by_the_weights_of_their_losses_are_warned_of(table):
    weights = table.weights()
    data, collate = reweight(ROWS, weights, collate_fn=pack)
    sampler = FlowPackSampler(weights, LENGTHS, MAX_LENGTH)
    with pytest.warns(UserWarning, match="so they count twice"):
        next(iter(DataLoader(data, batch_sampler=sampler, collate_fn=collate)))
