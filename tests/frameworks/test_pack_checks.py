"""What is set for packs, and what is refused, under SFTTrainer and the Trainer, in one process."""

import datasets
import numpy as np
import pytest
import torch
from frameworks_common import ROWS, WEIGHTS
from frameworks_language import make_model, make_tokenizer, sentences
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    OPTConfig,
    OPTForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from flowdata import FlowPacks, FlowPackSampler, MismatchError, PackCollator
from flowdata.errors import FlowDataWarning
from flowdata.frameworks.contamination import ContaminationError
from flowdata.frameworks.trainer import FlowCallback
from flowdata.frameworks.trl import draw_from, number_rows
from flowdata.frameworks.trl_packs import PacksOrRows
from flowdata.reweight import reweight

pytestmark = pytest.mark.slow

MOST = 24
TOKENIZER = make_tokenizer()
TEXTS = datasets.Dataset.from_dict({"text": sentences()})
ROWS_OF_TOKENS = [{"input_ids": TOKENIZER(text)["input_ids"]} for text in sentences()]
LENGTHS = [len(row["input_ids"]) for row in ROWS_OF_TOKENS]
COMMON = {
    "use_cpu": True,
    "bf16": False,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 2,
    "save_strategy": "no",
    "logging_steps": 1,
}


def mixing_model():
    """Its mask is not made of position_ids."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return OPTForCausalLM(
        OPTConfig(vocab_size=len(TOKENIZER), **sizes, ffn_dim=48, word_embed_proj_dim=32)
    )


def sft(folder, *, model=None, data=TEXTS, collator=None, **options):
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model or make_model(len(TOKENIZER)),
        SFTConfig(str(folder), **COMMON | options),
        train_dataset=data,
        processing_class=TOKENIZER,
        data_collator=collator,
    )


def packed(trainer, **options):
    given = {"packing": True, "max_length": MOST, "epoch_size": 40}
    return draw_from(trainer, WEIGHTS, **given | options)


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def samples_of(batch):
    """Token ids and labels of each sample of a batch in one row."""
    starts = (batch["position_ids"][0] == 0).nonzero()[1:, 0]
    parts = [batch[name][0].tensor_split(starts) for name in ("input_ids", "labels")]
    return [(ids.tolist(), labels.tolist()) for ids, labels in zip(*parts, strict=True)]


def test_batches_are_packs_in_one_row_without_attention_mask(tmp_path):
    trainer = sft(tmp_path, gradient_accumulation_steps=2)
    packs = packed(trainer)
    assert isinstance(packs, FlowPacks)
    assert trainer.train_dataset is packs
    # Two packs on the device, of two steps that are added up.
    assert len(packs) % 4 == 0
    batch = first_batch(trainer)
    assert batch["input_ids"].shape[0] == 1
    assert "attention_mask" not in batch
    rows = {tuple(row["input_ids"]) for row in tokenized_by_trl(trainer)}
    found = samples_of(batch)
    assert len(found) > 2
    assert {tuple(ids) for ids, _ in found} <= rows
    assert all(labels == [-100, *ids[1:]] for ids, labels in found)


def tokenized_by_trl(trainer):
    return list(trainer.train_dataset.dataset)


@pytest.mark.parametrize("whole", [True, False])
def test_what_is_learned_of_prompt_and_completion_is_as_trl_has_it(tmp_path, whole):
    turns = [
        {"prompt": f"row{row}" + " and" * (row % 4), "completion": " so on"} for row in range(ROWS)
    ]
    options = {"completion_only_loss": False} if whole else {}
    trainer = sft(tmp_path, data=datasets.Dataset.from_list(turns), **options)
    expected = {
        tuple(row["input_ids"]): [-100, *row["labels"][1:]] for row in trainer.train_dataset
    }
    packed(trainer)
    found = samples_of(first_batch(trainer))
    assert all(labels == expected[tuple(ids)] for ids, labels in found)
    assert any(-100 in labels[1:] for _, labels in found) != whole


def test_masks_are_honoured_where_an_earlier_trl_leaves_them_to_its_collator(tmp_path):
    trainer = sft(tmp_path)
    rows = trainer.train_dataset.remove_columns("labels")
    masks = [[0] * 2 + [1] * (len(ids) - 2) for ids in rows["input_ids"][:]]
    trainer.train_dataset = rows.add_column("completion_mask", masks)
    trainer.completion_only_loss = True
    packed(trainer)
    assert all(labels[:2] == [-100, -100] for _, labels in samples_of(first_batch(trainer)))


def test_weights_and_lengths_follow_rows_that_trl_drops(tmp_path):
    long = [f"row{row}" + " and" * (MOST if row in (2, 5) else row % 3) for row in range(ROWS)]
    turns = datasets.Dataset.from_list([{"prompt": text, "completion": " so on"} for text in long])
    lengths = [min(len(text.split()) + 3, MOST) for text in long]
    for data, given in ((turns, None), (number_rows(turns), lengths)):
        trainer = sft(tmp_path, data=data, max_length=MOST)
        with pytest.warns(FlowDataWarning, match=r"2 of the 13 rows .*\(rows 2, 5\)"):
            packs = packed(trainer, lengths=given)
        kept = np.delete(WEIGHTS, [2, 5])
        np.testing.assert_allclose(packs.plan.plan.weights.values, kept)
        trainer.train()


def test_the_room_of_a_pack_is_by_default_that_of_the_trainer(tmp_path):
    packs = packed(sft(tmp_path, max_length=16), max_length=None)
    assert packs.plan.max_length == 16
    with pytest.raises(ValueError, match="packing needs max_length"):
        packed(sft(tmp_path, max_length=None), max_length=None)


def test_evaluation_is_what_it_was(tmp_path):
    trainer = sft(tmp_path)
    before = trainer.evaluate(TEXTS)["eval_loss"]
    packed(trainer)
    assert trainer.evaluate(TEXTS)["eval_loss"] == before


def test_the_callback_is_added_once(tmp_path):
    trainer = sft(tmp_path)
    trainer.add_callback(FlowCallback())
    packed(trainer)
    callbacks = trainer.callback_handler.callbacks
    assert sum(isinstance(each, FlowCallback) for each in callbacks) == 1


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"gradient_checkpointing": False}])
def test_precisions_and_checkpointing_are_no_matter(tmp_path, options):
    trainer = sft(tmp_path, model=make_model(len(TOKENIZER)).float(), **options)
    packed(trainer)
    trainer.train()
    assert trainer.state.global_step == 2


def test_adapters_are_trained_on_packs(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(len(TOKENIZER)), LoraConfig(task_type="CAUSAL_LM"))
    trainer = sft(tmp_path, model=model)
    packed(trainer)
    trainer.train()
    assert trainer.state.global_step == 2


def test_a_model_that_mixes_samples_is_refused_and_the_trainer_left_as_it_was(tmp_path):
    trainer = sft(tmp_path, model=mixing_model())
    before = trainer.train_dataset, trainer.data_collator
    with pytest.raises(ContaminationError, match="OPTForCausalLM lets the samples of a pack"):
        packed(trainer)
    assert before == (trainer.train_dataset, trainer.data_collator)
    assert trainer.args.remove_unused_columns


def test_what_is_no_text_for_sft_trainer_is_refused(tmp_path):
    with pytest.raises(TypeError, match="has a DataCollatorForSeq2Seq"):
        packed(sft(tmp_path, collator=DataCollatorForSeq2Seq(TOKENIZER)))
    trainer = sft(tmp_path)
    trainer.train_dataset = TEXTS
    with pytest.raises(TypeError, match=r"needs tokenized rows.*\['text'\]"):
        packed(trainer)


REFUSED = {
    "twice": ({}, {}, "draws from a FlowPacks already"),
    "TRL's own packs": ({"packing": True}, {}, r"draw_from\(trainer, weights, packing=True\)"),
    "longer rows": ({}, {"max_length": 6}, "packs hold 6 tokens: 8 of 13 rows"),
    "too few draws": (
        {"gradient_accumulation_steps": 16},
        {},
        "32 to be a multiple of batch_size=32, but an epoch has only",
    ),
    "lengths of other rows": ({}, {"lengths": [3] * 5}, "lengths are of 5 rows"),
    "options of packs": ({}, {"packing": False}, "max_length and lengths are of packs"),
}


@pytest.mark.parametrize(("arguments", "options", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_packed_is_refused(tmp_path, arguments, options, text):
    trainer = sft(tmp_path, **arguments)
    if not (arguments or options):
        packed(trainer)
    with pytest.raises(ValueError, match=text):
        packed(trainer, **{"epoch_size": 20} | options)


def test_wrong_lengths_are_found_when_rows_are_read(tmp_path):
    trainer = sft(tmp_path)
    packed(trainer, lengths=[3] * ROWS)
    with pytest.raises(MismatchError, match="a length of 3 was given"):
        trainer.train()


@pytest.mark.guard
def test_grouping_by_length_is_refused_and_names_what_does_it(tmp_path):
    grouped = {"train_sampling_strategy": "group_by_length"}
    trainer = sft(tmp_path, **grouped)
    packed(trainer)
    with pytest.raises(ValueError, match="FlowPacks cannot be grouped by length"):
        trainer.train()
    trainer = sft(tmp_path, **grouped)
    draw_from(trainer, WEIGHTS)
    with pytest.raises(ValueError, match=r"arrange=flowdata\.ByLength\(lengths, batch_size"):
        trainer.train()


def train(folder, collate, *, data=None, model=None, kind=Trainer, **options):
    if data is None:
        data = FlowPacks(ROWS_OF_TOKENS, WEIGHTS, LENGTHS, MOST, batch_size=2)
    trainer = kind(
        model or make_model(len(TOKENIZER)),
        TrainingArguments(str(folder), **COMMON | options),
        train_dataset=data,
        data_collator=collate,
        callbacks=[FlowCallback()],
    )
    trainer.train()
    assert trainer.state.global_step == 2


SOUND = {
    "rows": (PackCollator(), {}),
    "one row": (PackCollator(flatten=True), {}),
    "one pack": (default_data_collator, {"per_device_train_batch_size": 1}),
}
MIXING = {
    "flattened again": (DataCollatorWithFlattening(), "position_ids of the batch go on"),
    "padded": (DataCollatorForSeq2Seq(TOKENIZER), "has an attention_mask"),
    "of language modelling": (
        DataCollatorForLanguageModeling(TOKENIZER, mlm=False),
        "has an attention_mask",
    ),
}


@pytest.mark.parametrize(("collate", "options"), SOUND.values(), ids=SOUND)
def test_the_trainer_trains_on_packs_that_are_kept_apart(tmp_path, collate, options):
    train(tmp_path, collate, **options)


@pytest.mark.parametrize(("collate", "text"), MIXING.values(), ids=MIXING)
def test_collators_that_mix_samples_are_refused_when_training_begins(tmp_path, collate, text):
    with pytest.raises(ContaminationError, match=text):
        train(tmp_path, collate)


def test_the_cache_is_refused_when_training_begins(tmp_path):
    with pytest.raises(ContaminationError, match="It is its cache"):
        train(tmp_path, PackCollator(), use_cache=True)
    with pytest.raises(ContaminationError, match="Its layers"):
        train(tmp_path, PackCollator(), model=mixing_model())


class LossOnly(torch.nn.Module):
    """A model of one's own that gives its loss, and no more."""

    def __init__(self):
        super().__init__()
        self.model = make_model(len(TOKENIZER))

    def forward(self, input_ids, labels, position_ids):
        given = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        return {"loss": self.model(**given, use_cache=False).loss}


def test_a_model_that_gives_its_loss_alone_is_warned_of(tmp_path):
    with pytest.warns(FlowDataWarning, match="LossOnly gives no logits"):
        train(tmp_path, PackCollator(), model=LossOnly())


class PackTrainer(Trainer):
    """Its batches are packs of rows."""

    def get_train_dataloader(self):
        sampler = FlowPackSampler(WEIGHTS, LENGTHS, MOST)
        loader = torch.utils.data.DataLoader(
            self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator
        )
        return self.accelerator.prepare(loader)


def test_collators_of_a_batch_sampler_are_tried_too(tmp_path):
    train(tmp_path, DataCollatorWithFlattening(), data=ROWS_OF_TOKENS, kind=PackTrainer)
    collate = DataCollatorWithFlattening(return_position_ids=False)
    with pytest.raises(ContaminationError, match="position_ids of the batch are missing"):
        train(tmp_path, collate, data=ROWS_OF_TOKENS, kind=PackTrainer)


class Wrapped(torch.utils.data.Dataset):
    """Items of another kind, made of packs."""

    def __init__(self, packs):
        self.packs = packs

    def __len__(self):
        return len(self.packs)

    def __getitem__(self, number):
        return {"input_ids": self.packs[number]}


def test_items_of_another_kind_made_of_packs_are_left_to_their_collator(tmp_path):
    def unwrapped(items):
        return PackCollator()([item["input_ids"] | {} for item in items])

    packs = FlowPacks(ROWS_OF_TOKENS, WEIGHTS, LENGTHS, MOST, batch_size=2)
    train(tmp_path, unwrapped, data=Wrapped(packs))
    with pytest.raises((TypeError, RuntimeError)):
        train(tmp_path, unwrapped)


def test_packs_with_weights_are_tried_as_they_are_trained_on(tmp_path):
    data, collate = reweight(
        ROWS_OF_TOKENS, WEIGHTS, target="labels", collate_fn=PackCollator(), alpha=0.5
    )
    packs = FlowPacks(data, WEIGHTS, LENGTHS, MOST, batch_size=2, alpha=0.5)
    with pytest.raises(ContaminationError, match="It is its cache"):
        train(tmp_path, collate, data=packs, use_cache=True)


def test_a_batch_of_rows_goes_by_what_was_the_collator_before():
    collate = PacksOrRows(packs=lambda items: ("packs", items), rows=lambda items: ("rows", items))
    assert collate([{"input_ids": [1, 2]}]) == ("rows", [{"input_ids": [1, 2]}])
    pack = FlowPacks(ROWS_OF_TOKENS, WEIGHTS, LENGTHS, MOST)[0]
    kind, [item] = collate([pack])
    assert kind == "packs"
    assert sum(item["seq_lengths"]) == len(item["input_ids"])
