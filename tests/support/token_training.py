"""Run by torchrun: gradients of a DDP step on tokens of different weights.

usage: token_training.py CONFIG.json, which holds {ids, labels, token_losses, batch_size, out}; the
outcome has the gradients of `language_model`. As a Trainer does it, the loss is a sum over tokens,
divided by the number of labels that all ranks have together.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from flowdata import LossTable
from flowdata.reweight import reweight

VOCABULARY = 13


def language_model():
    """The same on every rank."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(VOCABULARY, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, VOCABULARY)
    )


def token_table(token_losses):
    """The losses of all label positions of each row."""
    counts = np.array([len(losses) for losses in token_losses], dtype=np.int32)
    means = np.array([np.mean(losses) for losses in token_losses], dtype=np.float32)
    return LossTable(
        means,
        LossTable.from_losses(means).provenance,
        n_tokens=counts,
        token_losses=np.concatenate(token_losses).astype(np.float32),
    )


def main():
    config = json.loads(Path(sys.argv[1]).read_text())
    dist.init_process_group("gloo")
    rows = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}
        for ids, labels in zip(config["ids"], config["labels"], strict=True)
    ]
    data, collate = reweight(rows, token_table(config["token_losses"]), level="token")
    sampler = DistributedSampler(data, shuffle=False)
    [batch] = DataLoader(data, config["batch_size"], sampler=sampler, collate_fn=collate)
    model = DistributedDataParallel(language_model())
    labels = batch["labels"][:, 1:].reshape(-1)
    items = (labels != -100).sum()
    dist.all_reduce(items)
    logits = model(batch["input_ids"])[:, :-1].reshape(len(labels), VOCABULARY)
    loss = F.cross_entropy(logits, labels, reduction="sum") / items
    # DDP takes the mean over ranks, of which this is a sum.
    (loss * dist.get_world_size()).backward()
    if dist.get_rank() == 0:
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        Path(config["out"]).write_text(json.dumps(gradient.tolist()))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
