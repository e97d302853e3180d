"""Ways to fine-tune a language model on packs: the loop is the same, only the loader is not."""

import copy
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from methods import (
    DISTINCT,
    FEWER_STEPS,
    FLOW,
    FLOW_WISE,
    SMALLER_RATE,
    STANDARD,
    WISE,
    momentum,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from flowdata import (
    FlowDataWarning,
    FlowPacks,
    FlowSampler,
    FlowWeights,
    LossTable,
    PackCollator,
    mask_tokens,
)
from flowdata.reweight import reweight

CLIPPED = "FLOW, losses clipped"
TOKENS = "FLOW tokens, token median"
TOKENS_ONE = "FLOW tokens, tau = 1"
TOKENS_SEQUENCE = "FLOW tokens, sequence median"
STM, STM_SHARE = "STM, perplexity <= 2.5", "STM, 80 % of the tokens"
LORA, LORA_SMALLER, LORA_FEWER = "LoRA", "LoRA, lr x mean(w)", "LoRA, steps x mean(w)"
FLOW_LORA = "FLOW + LoRA"
WISE_SMALLER, WISE_FEWER = f"{WISE}, lr x mean(w)", f"{WISE}, steps x mean(w)"
PADDED, DISTINCT_PADDED = "standard, padded", "FLOW, distinct, padded"
GROUPS, EQUAL = "FLOW, median of each source", "FLOW, sources alike"

WHOLE = (STANDARD, SMALLER_RATE, FEWER_STEPS, FLOW, DISTINCT)
TOKEN_VARIANTS = (CLIPPED, TOKENS, TOKENS_ONE, TOKENS_SEQUENCE, STM, STM_SHARE)
WISE_METHODS = (WISE, WISE_SMALLER, WISE_FEWER, FLOW_WISE)
LORA_METHODS = (LORA, LORA_SMALLER, LORA_FEWER, FLOW_LORA)
# Those that are a training of another one, averaged with where it began.
AVERAGED = {
    WISE: STANDARD,
    WISE_SMALLER: SMALLER_RATE,
    WISE_FEWER: FEWER_STEPS,
    FLOW_WISE: FLOW,
}
# Those that train adapters as another one trains all parameters.
ADAPTED = {
    LORA: STANDARD,
    LORA_SMALLER: SMALLER_RATE,
    LORA_FEWER: FEWER_STEPS,
    FLOW_LORA: FLOW,
}
# Each has the rate of the method that it is a part of, so that less of it is all they are.
CONTROL_OF = {
    SMALLER_RATE: STANDARD,
    FEWER_STEPS: STANDARD,
    WISE_SMALLER: WISE,
    WISE_FEWER: WISE,
    LORA_SMALLER: LORA,
    LORA_FEWER: LORA,
    PADDED: STANDARD,
    DISTINCT_PADDED: DISTINCT,
}
# What is learned and kept along the way is measured, too.
CURVED = (PADDED, STANDARD, FLOW, DISTINCT_PADDED, DISTINCT)
FILL = 0
"""Token that fills batches up; no text has it."""
IGNORED = -100


@dataclass(frozen=True)
class Tuning:
    """What is fine-tuned on, and how.

    Args:
        rows: tokenized.
        table: of them, with token losses.
        weights: FLOW's, of them; of ``sources`` where there are several.
        sources: weights of groups by the method that has them.
        epochs, pack, packs: passes; tokens of a pack; packs of a step.
        optimizer: (parameters, learning rate) -> optimizer.
        device: where the model is.
    """

    rows: list[dict[str, Any]]
    table: LossTable
    sources: dict[str, FlowWeights]
    epochs: int
    pack: int
    packs: int
    optimizer: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    device: torch.device

    @property
    def weights(self) -> FlowWeights:
        """FLOW's, at the median loss."""
        return self.table.weights()


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned model, and what it took.

    Args:
        model: it.
        steps: of the optimizer.
        samples, tokens: that were learned, in all.
        places: tokens and what filled batches up.
        seconds: by the clock, other processes beside.
        curve: what was found along the way, with steps and tokens.
    """

    model: nn.Module
    steps: int = 0
    samples: int = 0
    tokens: int = 0
    places: int = 0
    seconds: float = 0.0
    curve: tuple[dict[str, float], ...] = ()


def fine_tuned(
    method: str,
    start: nn.Module,
    tuning: Tuning,
    learning_rate: float,
    seed: int,
    look: Callable[[nn.Module], dict[str, float]] | None = None,
) -> Tuned:
    """A copy of ``start`` trained by one method; the same seed gives the same order.

    Args:
        method: not one of those that are averaged.
        start: the pre-trained model.
        tuning: see there.
        learning_rate: constant; of ``lr x mean(w)`` before it is multiplied.
        seed: of the draws.
        look: measures the model after each quarter of the steps but the last.
    """
    base = ADAPTED.get(method, method)
    torch.manual_seed(seed)
    model: Any = copy.deepcopy(start)
    if method in ADAPTED:
        import peft

        config = peft.LoraConfig(r=64, lora_alpha=64, target_modules="all-linear")
        model = peft.get_peft_model(model, config)
    rate = learning_rate * (tuning.weights.mean if base == SMALLER_RATE else 1.0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = tuning.optimizer(trained, rate)
    model.train()
    loader = loader_of(base, tuning, seed)
    total = tuning.epochs * len(loader)
    looks = {total * quarter // 4 for quarter in (1, 2, 3)} - {0, total}
    steps = samples = tokens = places = 0
    curve: list[dict[str, float]] = []
    looking, began = 0.0, time.perf_counter()
    for batch in batches_of(loader, tuning.epochs):
        optimizer.zero_grad()
        loss_of(model, batch, tuning.device).backward()
        optimizer.step()
        real = batch["input_ids"] != FILL
        first = batch["position_ids"] == 0 if "position_ids" in batch else real.cumsum(1) == 1
        steps, places = steps + 1, places + real.numel()
        tokens, samples = tokens + int(real.sum()), samples + int((first & real).sum())
        if look is not None and steps in looks:
            paused = time.perf_counter()
            curve.append({"steps": steps, "tokens": tokens, "places": places, **look(model)})
            looking += time.perf_counter() - paused
    if tuning.device.type == "cuda":
        torch.cuda.synchronize(tuning.device)
    seconds = time.perf_counter() - began - looking
    if method in ADAPTED:
        model = model.merge_and_unload()
    return Tuned(model, steps, samples, tokens, places, seconds, tuple(curve))


def batches_of(loader: DataLoader[Any], epochs: int) -> Iterator[dict[str, Tensor]]:
    """All batches of all epochs."""
    for _ in range(epochs):
        yield from loader


def loss_of(model: nn.Module, batch: dict[str, Tensor], device: torch.device) -> Tensor:
    """The model's own loss, as any loop asks for it."""
    moved = {name: part.to(device) for name, part in batch.items()}
    with torch.autocast(device.type, torch.bfloat16):
        loss: Tensor = model(**moved).loss
    return loss


def loader_of(method: str, tuning: Tuning, seed: int) -> DataLoader[Any]:
    """The only thing in which methods differ, but for rates and adapters."""
    rows, table, weights = tuning.rows, tuning.table, tuning.weights
    if method in (PADDED, DISTINCT_PADDED):
        # As many tokens of texts a step as packs have.
        size = max(round(tuning.pack * tuning.packs / table.lengths.mean()), 1)
        drawn = {"sampler": FlowSampler(weights, epoch_size="distinct", seed=seed)}
        return DataLoader(
            rows,  # type: ignore[arg-type]
            size,
            collate_fn=padded,
            **(drawn if method == DISTINCT_PADDED else {"shuffle": True}),  # type: ignore[arg-type]
        )
    options: dict[str, Any] = {"max_length": tuning.pack, "batch_size": tuning.packs, "seed": seed}
    collate: Callable[[list[Any]], Any] = PackCollator(FILL)
    drawn_by: Any = FlowWeights.from_weights(np.ones(len(rows)))
    data: Any = rows
    if method == FEWER_STEPS:
        options["epoch_size"] = max(round(weights.mean * len(rows)), 1)
    elif method == DISTINCT:
        drawn_by, options["epoch_size"] = weights, "distinct"
    elif method == FLOW:
        drawn_by = weights
    elif method == CLIPPED:
        drawn_by = table.weights(function=clipped)
    elif method in tuning.sources:
        drawn_by = tuning.sources[method]
    elif method in (TOKENS, TOKENS_ONE, TOKENS_SEQUENCE):
        temperature: Any = {TOKENS: "median", TOKENS_ONE: 1.0}.get(
            method, float(np.median(table.losses))
        )
        data, collate = reweight(
            rows, table, level="token", temperature=temperature, collate_fn=collate
        )
    elif method in (STM, STM_SHARE):
        with warnings.catch_warnings():
            # Packs have tokens of other rows.
            warnings.filterwarnings("ignore", ".*no label is left", FlowDataWarning)
            data = mask_tokens(rows, table, MASKS[method], temperature="quantile:0.8")
    elif method not in (STANDARD, SMALLER_RATE):
        raise ValueError(f"no way to train is called {method!r}")
    packs = FlowPacks(data, drawn_by, table.lengths, **options)
    return DataLoader(packs, tuning.packs, collate_fn=collate)


def clipped(losses: Any, tau: float) -> Any:
    """FLOW's weights of losses clipped at their 10 % and 90 % quantiles."""
    return np.exp(-np.clip(losses, *np.quantile(losses, [0.1, 0.9])) / tau)


MASKS: dict[str, Callable[[Any, float], Any]] = {
    STM: lambda losses, _: losses <= np.log(2.5),
    STM_SHARE: lambda losses, tau: losses <= tau,
}


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch, padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def fill(name: str, value: int) -> Tensor:
        return torch.tensor([[*row[name], *[value] * (width - len(row[name]))] for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {
        "input_ids": fill("input_ids", FILL),
        "attention_mask": mask,
        "labels": fill("labels", IGNORED),
    }


def averaged(start: nn.Module, tuned: nn.Module) -> nn.Module:
    """The mean of the parameters before and after (WiSE-FT at alpha 0.5)."""
    model = copy.deepcopy(tuned)
    with torch.no_grad():
        for mean, old in zip(model.parameters(), start.parameters(), strict=True):
            mean.lerp_(old, 0.5)
    return model


def adamw(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW without decay."""
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)


OPTIMIZERS = {"AdamW": adamw, "SGD with momentum 0.9": momentum}
