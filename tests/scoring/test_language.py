import ast
import json
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from flowdata import CausalLM, FlowDataWarning, FlowWeights, InvalidLossError, score
from flowdata.scoring.language import tokens_that_fit

VOCABULARY = 97


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    return GPT2LMHeadModel(config)


def gemma2():
    """Its logits are capped after the head, so the head alone does not give them."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=128,
        final_logit_softcapping=0.5,
        initializer_range=0.5,
    )
    return Gemma2ForCausalLM(config)


class Plain(nn.Module):
    """A causal model that is not of transformers: sums of embeddings so far."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 16)
        self.out = nn.Linear(16, VOCABULARY)

    def forward(self, ids):
        return self.out(torch.tanh(self.embed(ids)).cumsum(dim=1))


def samples(number=40, *, longest=60, seed=0):
    """Rows of mixed length whose first third is a prompt."""
    random = np.random.default_rng(seed)
    rows = []
    for length in random.integers(3, longest, size=number).tolist():
        ids = random.integers(0, VOCABULARY, size=length)
        labels = np.where(np.arange(length) < length // 3, -100, ids)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def one_by_one(model, rows):
    """Token losses of each row from the whole logits of the row alone."""
    model.eval()
    losses = []
    with torch.no_grad():
        for row in rows:
            output = model(torch.tensor([row["input_ids"]]))
            logits = getattr(output, "logits", output)[0, :-1].float()
            labels = torch.tensor(row["labels"])[1:]
            each = F.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
            losses.append(each[labels >= 0].numpy())
    return losses


@pytest.mark.parametrize("make", [llama, gpt2, gemma2, Plain])
def test_losses_are_those_of_each_sample_alone(make):
    model, rows = make(), samples()
    table = score(model, rows, CausalLM(token_losses=True, max_tokens=200), progress=False)
    alone = one_by_one(model, rows)
    assert table.losses == pytest.approx([each.mean() for each in alone], rel=1e-5)
    assert table.n_tokens.tolist() == [each.size for each in alone]
    assert table.token_losses == pytest.approx(np.concatenate(alone), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("max_tokens", [1, 64, 10_000])
def test_losses_do_not_depend_on_batches_or_order(max_tokens):
    model, rows = llama(), samples()
    table = score(model, rows, "causal_lm", progress=False)
    order = np.random.default_rng(1).permutation(len(rows))
    other = score(
        model, [rows[row] for row in order], CausalLM(max_tokens=max_tokens), progress=False
    )
    assert other.losses == pytest.approx(table.losses[order], rel=1e-5)


def test_the_head_never_sees_a_token_that_is_not_scored_but_one_a_row():
    model, rows = llama(), samples()
    seen = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    table = score(model, rows, CausalLM(max_tokens=500), progress=False)
    positions = sum(shape[:-1].numel() for shape in seen)
    # One position of each row stands in for the forward pass, 8 and 8 for finding out.
    assert positions <= table.n_tokens.sum() + len(rows) + 16 + len(seen)
    assert all(shape.numel() < 2 * 500 * VOCABULARY for shape in seen)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_a_half_precision_model_are_float32(dtype):
    model, rows = llama().to(dtype), samples(10)
    alone = [each.mean() for each in one_by_one(model, rows)]
    table = score(model, rows, CausalLM(token_losses=True), progress=False)
    assert table.losses.dtype == table.token_losses.dtype == np.float32
    assert table.provenance.dtype == str(dtype).removeprefix("torch.")
    # Sums in half precision depend on the shape of the batch, but not for a batch of one.
    assert table.losses == pytest.approx(alone, rel=0.01)
    single = score(model, rows, CausalLM(max_tokens=1), progress=False)
    assert single.losses == pytest.approx(alone, rel=1e-5)
    # Not rounded to half precision.
    assert np.any(torch.tensor(table.losses).to(dtype).float().numpy() != table.losses)


def test_padding_that_the_attention_mask_shows_does_not_count():
    model, rows = llama(), samples(20)
    padded = []
    for number, row in enumerate(rows):
        pad = 5
        left = number % 2 == 0
        extended = {}
        for name, filler in (("input_ids", 0), ("labels", -100), ("attention_mask", 0)):
            values = row.get(name, [1] * len(row["input_ids"]))
            extended[name] = [filler] * pad + values if left else values + [filler] * pad
        padded.append(extended)
    plain, other = (score(model, data, "causal_lm", progress=False) for data in (rows, padded))
    assert other.losses == pytest.approx(plain.losses, rel=1e-5)


def test_rows_of_a_datasets_dataset_are_scored_in_its_order():
    rows = samples(30)
    dataset = datasets.Dataset.from_list(rows)
    table = score(llama(), dataset, CausalLM(token_losses=True), progress=False)
    assert table.losses == pytest.approx(
        [each.mean() for each in one_by_one(llama(), rows)], rel=1e-5
    )
    table.check(dataset=dataset, model=llama())
    tensors = score(llama(), dataset.with_format("torch"), "causal_lm", progress=False)
    assert tensors.losses.tolist() == pytest.approx(table.losses.tolist(), rel=1e-6)


def test_sequence_and_token_weights_are_the_authors():
    model, rows = llama(), samples()
    table = score(model, rows, CausalLM(token_losses=True), progress=False)
    alone = one_by_one(model, rows)
    means = np.array([each.mean() for each in alone])
    assert table.weights().values == pytest.approx(np.exp(-means / np.median(means)), rel=1e-4)
    tokens = np.concatenate(alone)
    weights = table.token_weights()
    assert weights.temperature == pytest.approx(np.median(tokens), rel=1e-5)
    assert weights.values == pytest.approx(np.exp(-tokens / np.median(tokens)), rel=1e-4)
    third = slice(*table.token_offsets[2:4])
    assert weights[third] == pytest.approx(np.exp(-alone[2] / np.median(tokens)), rel=1e-4)


def test_a_sample_without_a_response_token_is_named_or_dropped():
    rows = samples(5)
    rows[2]["labels"] = [-100] * len(rows[2]["labels"])
    # A label of the first token has nothing to be predicted from.
    rows[4] = {"input_ids": [1, 2, 3], "labels": [1, -100, -100]}
    with pytest.raises(InvalidLossError, match=r"no response token .* rows \[2, 4\]"):
        score(llama(), rows, "causal_lm", progress=False)
    table = score(llama(), rows, "causal_lm", on_invalid="drop", progress=False)
    assert np.flatnonzero(np.isnan(table.losses)).tolist() == [2, 4]
    assert table.weights(on_invalid="drop").values[[2, 4]].tolist() == [0.0, 0.0]


def test_over_long_samples_are_cut_counted_and_reported():
    model, rows = llama(), samples(30)
    with pytest.warns(FlowDataWarning, match=r"of 30 samples were longer than max_length"):
        table = score(model, rows, CausalLM(max_length=20), progress=False)
    cut = [{name: values[:20] for name, values in row.items()} for row in rows]
    assert table.losses == pytest.approx(
        score(model, cut, "causal_lm", progress=False).losses, rel=1e-5
    )
    assert table.provenance.truncated == sum(len(row["input_ids"]) > 20 for row in rows) > 0
    assert json.loads(table.provenance.options)["max_length"] == 20


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ({"input_ids": [1] * 200, "labels": [1] * 200}, ValueError, "row 1 has 200 tokens.*128"),
        ({"input_ids": [1, 97], "labels": [1, 97]}, ValueError, "row 1 has token 97.*0 to 96"),
        ({"input_ids": [1, 2], "labels": [1, 500]}, ValueError, "row 1 has token 500"),
        ({"input_ids": [-3, 2], "labels": [1, 2]}, ValueError, "row 1 has token -3"),
        ({"input_ids": [1, 2], "labels": [1]}, ValueError, r"row 1: .*\(2,\) and \(1,\)"),
        ({"input_ids": [1, 2]}, ValueError, r"row 1: .*no column \['labels'\].*\['input_ids'\]"),
        ((1, 2), TypeError, "row 1: .*rows that are dicts.*tuple"),
    ],
)
def test_a_row_the_model_cannot_take_is_refused_with_the_reason(row, error, message):
    with pytest.raises(error, match=message):
        score(llama(), [samples(1)[0], row], "causal_lm", progress=False)


@pytest.mark.slow
def test_a_row_that_a_worker_cannot_read_is_named_too():
    rows = [*samples(3), {"input_ids": [1], "labels": [1, 2]}]
    with pytest.raises(ValueError, match=r"row 3: .*one shape"):
        score(llama(), rows, "causal_lm", num_workers=1, progress=False)


def test_a_row_with_nothing_in_a_column_is_named_or_dropped():
    rows = samples(6)
    rows[1]["labels"] = None
    rows[4] = {"input_ids": [], "labels": []}
    with pytest.raises(InvalidLossError, match=r"no response token .* rows \[1, 4\]; "):
        score(llama(), rows, "causal_lm", progress=False)
    table = score(llama(), rows, CausalLM(token_losses=True), on_invalid="drop", progress=False)
    assert np.flatnonzero(np.isnan(table.losses)).tolist() == [1, 4]
    kept = [row for number, row in enumerate(rows) if number not in (1, 4)]
    wanted = np.concatenate(one_by_one(llama(), kept))
    assert table.token_losses == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_samples_that_were_cut_before_their_response_are_counted_in_the_error():
    rows = [{"input_ids": [1] * 9, "labels": [-100] * 6 + [1] * 3} for _ in range(3)]
    rows.append({"input_ids": [1, 2], "labels": [-100, -100]})
    with pytest.raises(
        InvalidLossError, match=r"rows \[0, 1, 2, 3\] \(3 of them were cut by max_l"
    ):
        score(llama(), rows, CausalLM(max_length=5), progress=False)


def test_a_tokenizer_of_another_model_is_refused_before_a_row_is_read(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)

    class Unread(list):
        def __getitem__(self, row):
            raise AssertionError("a row was read")

    rows = Unread([{"text": "short"}])
    with pytest.raises(ValueError, match=r"tokens up to 49151, the model knows tokens 0 to 96"):
        score(llama(), rows, CausalLM(tokenizer=tokenizer, text="text"), progress=False)


@pytest.mark.parametrize(
    ("free", "sizes", "tokens"),
    [
        # 2 bytes * (8 * 1,000 + 3 * 2,000) are 28 kB a token, in half of the memory.
        (56_000_000, {"hidden_size": 1000, "intermediate_size": 2000}, 1000),
        (80_000_000, {"hidden_size": 1000}, 1000),
        (80 << 30, {"hidden_size": 1000}, 32_768),
        (100, {"hidden_size": 1000}, 1),
        (100, {}, 32_768),
    ],
)
def test_the_tokens_of_a_batch_follow_from_free_memory_and_the_size_of_the_model(
    free, sizes, tokens
):
    assert tokens_that_fit(free, SimpleNamespace(**sizes), 2) == tokens


def test_a_model_that_gives_no_logits_for_each_token_is_refused():
    class Classifier(Plain):
        def forward(self, ids):
            return super().forward(ids)[:, -1]

    with pytest.raises(TypeError, match=r"logits of shape .* Classifier gave"):
        score(Classifier(), samples(2), "causal_lm", progress=False)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_batch_that_does_not_fit_into_memory_is_halved(error):
    class Small(Plain):
        limit = 150

        def __init__(self):
            super().__init__()
            self.batches = []
            self.scored = 0

        def forward(self, ids):
            self.batches.append(ids.numel())
            if ids.numel() > self.limit:
                raise error
            self.scored += len(ids)
            return super().forward(ids)

    model, rows = Small(), samples(50)
    table = score(model, rows, CausalLM(max_tokens=2000), progress=False)
    alone = one_by_one(Plain(), rows)
    assert table.losses == pytest.approx([each.mean() for each in alone], rel=1e-5)
    assert model.scored == len(rows)
    # 2,000 to 1,000 to 500 to 250 to 125, once for the whole pass.
    assert 1 <= sum(size > 150 for size in model.batches) <= 5

    model.limit = 30
    longest = max(range(50), key=lambda row: len(rows[row]["input_ids"]))
    with pytest.raises(MemoryError, match=rf"row {longest} .*pass max_length="):
        score(model, rows, "causal_lm", progress=False)


def test_other_errors_of_the_model_are_not_taken_for_a_lack_of_memory():
    class Broken(Plain):
        def forward(self, ids):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        score(Broken(), samples(2), "causal_lm", progress=False)


# Samples by their length in characters: most are short, some have several hundred tokens.
STRATA = {(60, 120): 172, (120, 240): 20, (240, 600): 5, (600, 1200): 2, (1200, 2000): 1}


def functions(strata):
    """Rows of text from the standard library: docstrings as prompts of functions."""
    rows = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                body = "\n".join(ast.unparse(statement) for statement in node.body[1:])
                rows.append({"prompt": f"{ast.get_docstring(node)}\n", "response": body})
    rows = [row for row in rows if len(row["response"]) > 20]
    order = np.random.default_rng(0).permutation(len(rows))
    lengths = np.array([len(str(rows[row])) for row in order])
    chosen = [
        row
        for (low, high), some in strata.items()
        for row in order[(low <= lengths) & (lengths < high)][:some]
    ]
    return [rows[row] for row in np.random.default_rng(1).permutation(chosen)]


@pytest.mark.slow
def test_a_real_model_gives_real_samples_the_losses_of_transformers(smollm2):
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    rows, made = functions(STRATA), []
    columns = {"tokenizer": tokenizer, "prompt": "prompt", "response": "response"}
    loss = CausalLM(**columns, token_losses=True)
    hook = model.lm_head.register_forward_hook(
        lambda module, inputs, output: made.append(output.shape[:-1].numel())
    )
    table = score(model, rows, loss, progress=False)
    hook.remove()
    assert len(table) == 200
    expected, tokens, longest = [], [], 0
    with torch.no_grad():
        for sample in loss.reader()(rows):
            longest = max(longest, sample.ids.size)
            labels = torch.from_numpy(sample.labels)[None]
            output = model(input_ids=torch.from_numpy(sample.ids)[None], labels=labels)
            expected.append(output.loss.item())
            each = F.cross_entropy(output.logits[0, :-1], labels[0, 1:], reduction="none")
            tokens.append(each[labels[0, 1:] >= 0].numpy())
    assert table.losses == pytest.approx(expected, rel=1e-4)
    assert table.token_losses == pytest.approx(np.concatenate(tokens), rel=1e-4, abs=1e-4)
    assert len(set(table.n_tokens.tolist())) > 20
    assert longest > 300
    # Logits of response tokens only, and of one a row that stands in for the forward pass.
    assert sum(made) < table.n_tokens.sum() + len(rows) + 100
    assert table.weights().temperature == pytest.approx(np.median(expected), rel=1e-4)
    assert isinstance(table.token_weights(), FlowWeights)

    few = np.arange(199, 0, -10)
    other = score(model, [rows[row] for row in few], CausalLM(**columns, max_tokens=100))
    assert other.losses == pytest.approx(table.losses[few], rel=1e-4)
