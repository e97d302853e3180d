"""Small language models, samples for them, and their losses one by one."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

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
