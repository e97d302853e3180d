"""Whether a model keeps the samples of a pack apart: the check before packs are trained on."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdata.errors import FlowDataError

Collate: TypeAlias = Callable[[list[dict[str, Any]]], Mapping[str, Any]]

MOST_TOKENS = 64
"""Of each sample: what looks across samples moves the first tokens most."""
_LABELS, _IGNORED = "labels", -100
# How far a token's loss may move by rounding. The first sample of a pack sees nothing of the
# second, so what moves its losses is rounding; a second sample is allowed some times as much,
# between two multiples of the coarsest precision that layers compute in, at the size of the logits.
# SmolLM2 moves by 1e-5 at its worst token in float32, by 0.17 in bfloat16, and by 8 where its
# samples see each other.
_TIMES_FIRST = 4.0
_LEAST_TIMES, _MOST_TIMES = 4.0, 16.0
_FINEST = 2e-6
"""Sums of many float32 numbers are no more precise."""
_TF32 = 1e-3


class ContaminationError(FlowDataError, ValueError):
    """A model, or its inputs, that lets the samples of a pack see each other."""


class NoLogitsError(ContaminationError):
    """A model whose losses by token cannot be seen."""


@dataclass(frozen=True)
class Separation:
    """How far the losses of two samples in one pack are from those of each alone.

    Attributes:
        relative: difference of the summed losses, as a share of the sum alone.
        worst: difference at the worst token, in nats.
        limit: how much of that is explained by rounding, in nats.
    """

    relative: float
    worst: float
    limit: float

    @property
    def is_clean(self) -> bool:
        """Whether rounding explains the difference."""
        # Not `>`: the losses of a model may be NaN.
        return self.worst <= self.limit


def require_separate(
    model: nn.Module,
    pack: Mapping[str, Any],
    *,
    collate: Collate | None = None,
    batch_size: int = 1,
    **inputs: Any,
) -> Separation:
    """Make sure, before training, that a model reads each sample of a pack as if it were alone.

    Two samples of the pack are read together and one by one, without gradients, in evaluation
    mode; modes and random numbers are afterwards as they were. It takes three passes over at most
    128 tokens. Every rank calls it where a model is sharded over ranks.

    Args:
        model: a causal language model that gives logits.
        pack: ``input_ids`` and ``position_ids`` of a pack: an item of `FlowPacks`, say.
        collate: what makes a batch of the items of `FlowPacks`, as the loader has it.
        batch_size: packs in a batch of the loader: several of them in one batch are seen by some
            models as they see none of one.
        inputs: what the loop gives the model beside the batch, such as ``use_cache=False``.

    Returns:
        How far the losses differ.

    Raises:
        ContaminationError: when they differ by more than rounding, with the numbers and what to do;
            a NoLogitsError when the model gives no logits.
        ValueError: for a pack of less than four tokens.

    >>> from flowdata.frameworks.contamination import require_separate
    >>> def check(model, packs, loader):
    ...     require_separate(model, packs[0], collate=loader.collate_fn)
    """
    make = _tensors if collate is None else collate
    samples = two_samples(pack["input_ids"], pack["position_ids"])
    copies = min(batch_size, 2) if collate else 1
    given = [make([_item(part)] * copies) for part in (samples, samples[:1], samples[1:])]
    return require_apart(model, samples, given, **inputs)


def require_apart(
    model: nn.Module,
    samples: Sequence[Tensor],
    batches: Sequence[Mapping[str, Any]],
    **inputs: Any,
) -> Separation:
    """As `require_separate`.

    Args:
        model: see there.
        samples: token ids of two samples.
        batches: that begin with a pack of both, and with one of each.
        inputs: see there.
    """
    model = _unwrapped(model)
    _require_positions(model)
    checkpointed = any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    if checkpointed and "use_cache" not in inputs and _takes(model, "use_cache"):
        # transformers 5.23, utils/generic.py, merge_with_config_defaults: no cache in training.
        inputs["use_cache"] = False
    found = _compare(model, samples, batches, inputs)
    if not found.is_clean:
        raise ContaminationError(_refusal(model, samples, batches, inputs, found))
    return found


def two_samples(ids: Any, positions: Any) -> list[Tensor]:
    """The first tokens of two samples of a pack; halves of one where there is no other."""
    ids, positions = (torch.as_tensor(given).reshape(-1).cpu().long() for given in (ids, positions))
    starts = (positions.diff() != 1).nonzero()[:, 0] + 1
    parts = sorted(ids.tensor_split(starts), key=len, reverse=True)
    if len(parts) < 2 or len(parts[1]) < 2:
        half = len(parts[0]) // 2
        parts = [parts[0][:half], parts[0][half:]]
    if min(map(len, parts[:2])) < 2:
        raise ValueError(
            f"two samples of two tokens are needed to see whether a model keeps samples apart, got "
            f"a pack of {len(ids)} tokens: give a pack of more"
        )
    return [part[:MOST_TOKENS] for part in parts[:2]]


def _item(samples: Sequence[Tensor]) -> dict[str, Any]:
    """An item as `FlowPacks` makes it."""
    labels = torch.cat(list(samples))
    for start in itertools.accumulate(map(len, samples[:-1]), initial=0):
        labels[start] = _IGNORED
    return {
        "input_ids": torch.cat(list(samples)),
        _LABELS: labels,
        "position_ids": torch.cat([torch.arange(len(sample)) for sample in samples]),
    }


def _tensors(items: list[dict[str, Any]]) -> dict[str, Any]:
    [item] = items
    return {name: values[None] for name, values in item.items()}


def _compare(
    model: nn.Module,
    samples: Sequence[Tensor],
    batches: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
) -> Separation:
    with _evaluated(model), _precisions(model) as precisions:
        together, size = _losses(model, samples, batches[0], inputs)
        alone = [
            _losses(model, [sample], batch, inputs)[0][0]
            for sample, batch in zip(samples, batches[1:], strict=True)
        ]
    first, second = (
        float((packed - single).abs().max()) for packed, single in zip(together, alone, strict=True)
    )
    summed, expected = (float(sum(losses.sum() for losses in each)) for each in (together, alone))
    rounding = size * max(precisions)
    return Separation(
        relative=abs(summed - expected) / max(abs(expected), torch.finfo(torch.float32).tiny),
        # What is not a number is the worst.
        worst=max((first, second), key=lambda value: (math.isnan(value), value)),
        limit=min(max(_TIMES_FIRST * first, _LEAST_TIMES * rounding), _MOST_TIMES * rounding),
    )


def _losses(
    model: nn.Module,
    samples: Sequence[Tensor],
    batch: Mapping[str, Any],
    inputs: Mapping[str, Any],
) -> tuple[list[Tensor], float]:
    """Loss of each token of each sample but its first, whatever its labels; size of the logits."""
    tokens = sum(map(len, samples))
    given = torch.as_tensor(batch["input_ids"]).reshape(-1)[:tokens].cpu()
    if not torch.equal(given.long(), torch.cat(list(samples))):
        raise ContaminationError(
            "the collate function gives the model other input_ids than those of the pack, in "
            f"their order: {given.tolist()[:8]}..., not {torch.cat(list(samples)).tolist()[:8]}..."
        )
    device = _device(model)
    tensors = {
        name: value.to(device) if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != _LABELS or _needs(model, _LABELS)
    }
    output = model(**tensors, **inputs)
    logits = getattr(output, "logits", output)
    logits = logits[0] if isinstance(logits, tuple) else logits
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2].numel() < tokens:
        raise NoLogitsError(
            f"{type(model).__name__} gives no logits of shape (1, {tokens}, V) for the {tokens} "
            f"tokens of a pack, but {getattr(logits, 'shape', type(logits).__name__)}: whether it "
            "keeps samples apart cannot be seen: have it give them in evaluation, or make sure of "
            "it yourself"
        )
    logits = logits.reshape(-1, logits.shape[-1])[:tokens].double().cpu()
    losses = [
        F.cross_entropy(part[:-1], sample[1:], reduction="none")
        for part, sample in zip(torch.split(logits, [*map(len, samples)]), samples, strict=True)
    ]
    # Softmax does not see what is added to all logits alike.
    return losses, float((logits - logits.mean(dim=-1, keepdim=True)).abs().max())


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Without gradients, in evaluation mode; modes and random numbers are put back."""
    modes = [(part, part.training) for part in model.modules()]
    device = _device(model)
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        # Not `eval()`, by which some adapters merge weights.
        for part, _ in modes:
            part.training = False
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


@contextmanager
def _precisions(model: nn.Module) -> Iterator[list[float]]:
    """The precisions that layers give their results in, also under autocast."""
    on_gpu = _device(model).type == "cuda"
    is_tf32 = on_gpu and torch.get_float32_matmul_precision() != "highest"
    seen = [_TF32 if is_tf32 else _FINEST]

    def note(_module: nn.Module, _given: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            seen.append(torch.finfo(output.dtype).eps)

    hooks = [part.register_forward_hook(note) for part in model.modules()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(
    model: nn.Module,
    samples: Sequence[Tensor],
    batches: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
    found: Separation,
) -> str:
    found_text = (
        f"{type(model).__name__} lets the samples of a pack see each other: of two samples in one "
        f"pack, the losses differ from those of each alone by {found.worst:.2g} at the worst token "
        f"({found.limit:.1g} is rounding), and their sum by {found.relative:.2%}"
    )
    return f"{found_text}. {_advice(model, samples, batches, inputs)}"


def _advice(
    model: nn.Module,
    samples: Sequence[Tensor],
    batches: Sequence[Mapping[str, Any]],
    inputs: Mapping[str, Any],
) -> str:
    """What lets them, as far as that can be found out, and what to do."""
    batch = batches[0]
    if batch.get("attention_mask") is not None:
        return (
            "The batch has an attention_mask, beside which no position_ids are looked at: use a "
            "collate function that gives input_ids, labels and position_ids alone"
        )
    positions = batch.get("position_ids")
    expected = torch.cat([torch.arange(len(sample)) for sample in samples])
    if positions is None or not torch.equal(
        torch.as_tensor(positions).reshape(-1)[: len(expected)].cpu(), expected
    ):
        return (
            f"The position_ids of the batch {'are missing' if positions is None else 'go on'} "
            "where a sample begins: use a collate function that keeps those of the pack, and "
            "remove_unused_columns=False where a Trainer takes them away"
        )
    if inputs.get("use_cache") is not False and _takes(model, "use_cache"):
        without = _compare(model, samples, batches, {**inputs, "use_cache": False})
        if without.is_clean:
            # transformers 5.23, masking_utils.py, _preprocess_mask_arguments.
            return (
                "It is its cache, beside which transformers makes no mask of position_ids: set "
                "model.config.use_cache = False, or call model(..., use_cache=False)"
            )
    attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if "flash" in str(attention) and len(batch["input_ids"]) > 1:
        # transformers 5.23, modeling_flash_attention_utils.py, _is_packed_sequence.
        return (
            "The batch has several rows, and flash attention looks at the position_ids of one: use "
            "PackCollator(flatten=True), or batches of one pack"
        )
    return (
        f"Its layers (attn_implementation={attention!r}) do not tell samples apart by "
        "position_ids, as attention of Llama or Qwen does with 'sdpa' and 'eager', and on a GPU "
        "with 'flash_attention_2': load it with another attn_implementation, or train it on "
        "batches of like length, arrange=ByLength(lengths, batch_size)"
    )


def _require_positions(model: nn.Module) -> None:
    if not _takes(model, "position_ids"):
        raise ContaminationError(
            f"{type(model).__name__} takes no position_ids, by which the samples of a pack are "
            "told apart: train it on batches of like length, arrange=ByLength(lengths, batch_size)"
        )


def _needs(model: nn.Module, name: str) -> bool:
    parameter = inspect.signature(model.forward).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def _device(model: nn.Module) -> torch.device:
    """Where the model is; parts of it may be kept elsewhere, and be fetched by it."""
    devices = (parameter.device for parameter in model.parameters())
    return next((device for device in devices if device.type != "meta"), torch.device("cpu"))


def _takes(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without what compiles it or adds up its gradients."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner
