"""Running a model over data in order, and leaving no trace of it."""

from collections import namedtuple

import numpy as np
import peft
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from flowdata.scoring.models.inference import (
    Arriving,
    count_rows,
    device_of,
    evaluating,
    move,
    one_behind,
    read_batches,
    to_device,
    unwrap_model,
    without_adapters,
)

CPU = torch.device("cpu")


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))


def bert():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=20, num_hidden_layers=1, **sizes)
    return transformers.BertForSequenceClassification(config).eval()


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_module_is_in_evaluation_mode_and_gets_its_own_mode_back():
    model = network().train()
    model[2].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not model(torch.ones(2, 3)).requires_grad
    assert [module.training for module in model.modules()] == [True, True, True, False, True]
    assert model(torch.ones(2, 3)).requires_grad


def test_modes_come_back_after_an_error():
    model = network().train()
    model[1].eval()

    def fail():
        with evaluating(model):
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        fail()
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_adapters_are_off_inside_and_on_again_after_it():
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
    model, inputs = peft.get_peft_model(network(), config).eval(), torch.ones(2, 3)
    adapted = model(inputs)
    with without_adapters(model):
        assert torch.equal(model(inputs), network().eval()(inputs))
    assert torch.equal(model(inputs), adapted)
    assert not torch.equal(adapted, network().eval()(inputs))


def test_adapters_added_by_transformers_itself_are_off_inside_and_on_again_after_it():
    model = bert()
    inputs = {"input_ids": torch.arange(6)[None], "attention_mask": torch.ones(1, 6)}
    base = model(**inputs).logits
    lora = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    model.add_adapter(lora)
    adapted = model.eval()(**inputs).logits
    assert not torch.allclose(adapted, base)
    with without_adapters(model):
        torch.testing.assert_close(model(**inputs).logits, base)
    torch.testing.assert_close(model(**inputs).logits, adapted)


def test_adapters_of_transformers_that_were_off_stay_off():
    model = bert()
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    model.eval().disable_adapters()
    ids = torch.arange(6)[None]
    before = model(ids).logits
    with without_adapters(model):
        assert torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("kind", ["peft", "transformers"])
def test_adapters_that_were_frozen_stay_frozen(kind):
    if kind == "peft":
        model = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0"]))
    else:
        model = bert()
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["query"]))
    model.requires_grad_(False)
    with without_adapters(model):
        pass
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_model_without_adapters_is_left_alone():
    model = network().eval()
    with without_adapters(model):
        assert torch.equal(model(torch.ones(2, 3)), network().eval()(torch.ones(2, 3)))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_rows_are_read_in_the_order_asked_for_with_a_smaller_last_batch(workers):
    rows = np.array([5, 0, 9, 3, 3, 8, 1])
    batches = list(
        read_batches(
            [10 * row for row in range(10)], rows, size=3, collate_fn=None, num_workers=workers
        )
    )
    assert [numbers.tolist() for numbers, _ in batches] == [[5, 0, 9], [3, 3, 8], [1]]
    assert [read.tolist() for _, read in batches] == [[50, 0, 90], [30, 30, 80], [10]]


def test_reading_uses_the_collate_function_and_draws_no_random_number():
    before = torch.get_rng_state()
    (batch,) = read_batches(list("abc"), np.arange(3), size=9, collate_fn="".join, num_workers=0)
    assert batch[1] == "abc"
    assert torch.equal(torch.get_rng_state(), before)


def test_reading_no_rows_reads_nothing():
    assert list(read_batches([], np.arange(0), size=3, collate_fn=None, num_workers=0)) == []


def test_a_plain_model_is_bare_already():
    model = network()
    assert unwrap_model(model) is model


def test_the_model_inside_data_parallel_is_bare(one_process):
    model = network()
    assert unwrap_model(nn.parallel.DistributedDataParallel(model)) is model


def test_sharded_parameters_are_refused(one_process):
    from torch.distributed.tensor import distribute_tensor, init_device_mesh

    model = nn.Linear(4, 4)
    model.weight = nn.Parameter(distribute_tensor(model.weight, init_device_mesh("cpu", (1,))))
    with pytest.raises(TypeError, match="score before the model is sharded"):
        unwrap_model(model)


def test_batches_go_where_asked_else_where_the_model_is_else_to_the_cpu():
    assert device_of(network(), None) == CPU
    assert device_of(network().to("meta"), None) == torch.device("meta")
    assert device_of(network(), "meta") == torch.device("meta")
    assert device_of(nn.Identity(), None) == CPU


def test_every_tensor_of_a_batch_is_moved_and_its_structure_kept():
    pair = namedtuple("pair", "x y")
    batch = {"a": [torch.ones(2), "text"], "b": (torch.ones(1), pair(torch.ones(3), 4)), "c": None}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].is_meta
    assert moved["a"][1] == "text"
    assert type(moved["b"]) is tuple
    assert moved["b"][0].is_meta
    assert type(moved["b"][1]) is pair
    assert moved["b"][1].x.is_meta
    assert moved["b"][1].y == 4
    assert moved["c"] is None
    assert not batch["a"][0].is_meta


def test_the_batch_of_a_tokenizer_is_moved_as_a_dict():
    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 3)})
    moved = to_device(batch, torch.device("meta"))
    assert moved["input_ids"].is_meta


def test_rows_are_counted_only_for_map_style_data_that_is_not_empty():
    class Stream(IterableDataset):
        def __iter__(self):
            yield 1

    assert count_rows([1, 2, 3]) == 3
    with pytest.raises(TypeError, match="pass the data set, not a DataLoader"):
        count_rows(DataLoader([1, 2, 3]))
    for stream in (Stream(), iter([1, 2]), object()):
        with pytest.raises(TypeError, match="a map-style data set is needed, got"):
            count_rows(stream)
    with pytest.raises(ValueError, match="the data set is empty"):
        count_rows([])


def test_items_come_one_behind_and_none_is_lost_to_an_error():
    made, taken = [], []

    def items():
        for item in range(3):
            made.append(item)
            yield item
        raise ValueError("broken")

    def take():
        for item in one_behind(items()):
            taken.append((item, len(made)))

    with pytest.raises(ValueError, match="broken"):
        take()
    assert taken == [(0, 2), (1, 3), (2, 3)]
    assert list(one_behind(iter([]))) == []


def test_what_arrives_is_what_was_there():
    values = torch.arange(5.0)
    assert Arriving(values).numpy().tolist() == values.tolist()
    assert move(values, torch.device("cpu")) is values
