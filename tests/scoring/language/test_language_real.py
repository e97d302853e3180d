"""A real language model on real text."""

import ast
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from long_run import LONG
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from flowdata import CausalLM, FlowWeights, score

# Samples by their length in characters: most are short, some have several hundred tokens.
LENGTHS = (60, 120), (120, 240), (240, 600), (600, 1200), (1200, 2000)
STRATA = dict(zip(LENGTHS, (172, 20, 5, 2, 1) if LONG else (40, 8, 3, 1, 1), strict=True))


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
    assert len(table) == sum(STRATA.values())
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
    # Logits of response tokens only, of one a row that stands in for the forward pass, and of the
    # few by which it is found out what the model does.
    assert sum(made) < table.n_tokens.sum() + len(rows) + 500
    assert table.weights().temperature == pytest.approx(np.median(expected), rel=1e-4)
    assert isinstance(table.token_weights(), FlowWeights)

    few = np.arange(len(rows) - 1, 0, -10)
    other = score(model, [rows[row] for row in few], CausalLM(**columns, max_tokens=100))
    assert other.losses == pytest.approx(table.losses[few], rel=1e-4)
