"""Weights of tokens under TRL's SFTTrainer, against a weighted mean written by hand."""

import copy

import datasets
import numpy as np
import pytest
import torch
from weighted_language import by_hand, make_rows, padded, small_model, tables

from flowdata.reweight import reweight

ROWS = make_rows()
BATCH, ACCUMULATED = 2, 2


def step_by_hand(model, weights, rate):
    """The loss of a step over batches of rows, over all of their labels, and the model after it."""
    batches = [range(start, start + BATCH) for start in range(0, BATCH * ACCUMULATED, BATCH)]
    items = sum(label >= 0 for part in batches for row in part for label in ROWS[row]["labels"])
    total = 0.0
    for part in batches:
        batch = padded([ROWS[row] for row in part])
        spread = torch.zeros(batch["labels"].shape)
        for place, row in enumerate(part):
            spread[place, 2 : 2 + len(weights[row])] = torch.tensor(weights[row])
        total = total + by_hand(model, batch, spread, items)
    total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= rate * parameter.grad
    return total.item()


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
@pytest.mark.parametrize("given", ["table", "numbers"])
def test_the_loss_of_a_step_is_the_weighted_mean_over_its_tokens(tmp_path, given):
    from frameworks_language import make_tokenizer
    from trl import SFTConfig, SFTTrainer

    from flowdata.frameworks.trl import weighted_loss

    model = small_model(initializer_range=1.0)
    table = tables(model, ROWS)
    tokens = table.token_weights(temperature=3.0).values
    assert np.ptp(tokens) > 0.1
    weights = [part.tolist() for part in np.split(tokens, table.token_offsets[1:-1])]
    options = {"temperature": 3.0} if given == "table" else {}
    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=BATCH, max_steps=1,
        gradient_accumulation_steps=ACCUMULATED, train_sampling_strategy="sequential",
        learning_rate=0.05, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0,
        report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        copy.deepcopy(model), args, train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=make_tokenizer(), compute_loss_func=weighted_loss,
    )  # fmt: skip
    trainer.train_dataset, trainer.data_collator = reweight(
        trainer.train_dataset, table if given == "table" else weights, level="token",
        target="labels", collate_fn=trainer.data_collator, normalize=None, **options,
    )  # fmt: skip
    trainer.train()
    found = trainer.state.log_history[0]["loss"]
    ones = [[1.0] * len(part) for part in weights]
    unweighted = step_by_hand(copy.deepcopy(model), ones, 0.05)
    assert found == pytest.approx(step_by_hand(model, weights, 0.05), rel=1e-5)
    assert found != pytest.approx(unweighted, rel=1e-2)
    for one, other in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-5)
