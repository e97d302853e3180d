"""Whether a model predicts a token from those before it alone, and always alike."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdata.scoring.models.own_loss import UNLIKE, is_precise

_MOST_TOKENS = 32
_TRIALS = 3
# A model that reads both ways is moved about as much by the next token as by the last one, one
# that is causal not at all: measured on 20 families of transformers, 0.5 to 2 times against 0.
_LEAST_SHARE = 0.2
# TF32 moves logits by less.
_ROUNDING = 2e-3


class NotCausalError(TypeError):
    """A model that reads what it shall predict."""


def require_causal(
    model: nn.Module,
    logits_of: Callable[[Tensor], Tensor],
    ids: Tensor,
    labels: Tensor,
    *,
    text_alone: bool,
) -> None:
    """Make sure that the logits before a scored token do not depend on it.

    Found out by changing a token, on a few tokens of the first sample that has a label. Nothing is
    said of models whose quantised activations depend on all tokens of a batch, or that are random.

    Args:
        model: what shall be causal.
        logits_of: (ids of shape (1, T)) -> logits of shape (1, T, V).
        ids: shape (B, T).
        labels: shape (B, T); below 0 where a token is not scored.
        text_alone: whether the model takes ids alone; nothing is said of one that does not.

    Raises:
        NotCausalError: for a model that reads the tokens it shall predict.
    """
    # Up to a scored token: a prompt may well be read both ways, by a model that says so.
    row = int((labels[:, 1:] >= 0).any(dim=1).int().argmax())
    scored = (labels[row, 1:] >= 0).nonzero()[:, 0] + 1
    others, ids = torch.unique(ids), ids[row]
    if not len(scored):
        return
    if len(others) < 2:
        # Any other token: that before it, after the first.
        others = torch.cat([others, (others - 1).abs()])
    last = int(scored[scored < max(_MOST_TOKENS, int(scored[0]) + 1)].max())
    ids = ids[max(last + 1 - _MOST_TOKENS, 0) : last + 1]
    last = len(ids) - 1
    try:
        as_it_is = logits_of(ids[None])[0].float()
    # Whatever a model raises that misses the image of a row.
    except Exception:
        if text_alone:
            raise
        return
    rounding = 16 * torch.finfo(torch.float32).eps * float(as_it_is.abs().max())
    passed, before = 0, 0.0
    for trial in range(_TRIALS):
        # Both are next to each other, so that either is as near to what it moves.
        before = _moved(as_it_is, logits_of, _changed(ids, last, others, trial), last - 1)
        # What is NaN is said where losses are looked at.
        if not before > rounding:
            return
        after = _moved(as_it_is, logits_of, _changed(ids, last - 1, others, trial), last)
        passed += before <= _LEAST_SHARE * after
    # Most of them: one may have met a token with which a model counts positions, as padding.
    if passed > _TRIALS // 2 or is_quantized(model):
        return
    if _moved(as_it_is, logits_of, ids, last - 1) > _LEAST_SHARE * before:
        # It draws random numbers, and moves without any change.
        return
    raise NotCausalError(
        f"{type(model).__name__} is no causal language model: the prediction of a token changes "
        "with that token, which it reads. Score with a causal one, or, if it predicts masked "
        "tokens, with flowdata.TokenLabels: rows with masked input_ids and their labels"
    )


def require_same_predictions(
    model: nn.Module, logits_of: Callable[[Tensor, Tensor], Tensor], ids: Tensor
) -> None:
    """Make sure that logits of a text are the same again, and beside another, longer one.

    Nothing is said of low precision and of quantised activations, which move with the batch.

    Args:
        model: a causal model.
        logits_of: (ids of shape (B, T), padded on the right, lengths) -> logits (B, T, V).
        ids: some tokens, of shape (T,).

    Raises:
        TypeError: for a model that draws random numbers, or that sees the rest of a batch.
    """
    if ids.numel() < 2 or is_quantized(model) or not is_precise(model, ids.device):
        return
    size = max(ids.numel() // 2, 2)
    text = ids[:size]
    batch = torch.stack([ids.flip(0), F.pad(text, (0, ids.numel() - size))])
    lengths = torch.tensor([ids.numel(), size], device=ids.device)
    try:
        among, again = (logits_of(batch, lengths)[1, :size].float() for _ in range(2))
        alone = logits_of(text[None], lengths[1:])[0].float()
    # Whatever a model raises that takes no such texts; where it lacks memory, the rows show it.
    except Exception:
        return
    if _share_moved(again, among) > _ROUNDING:
        raise TypeError(
            f"the losses of {type(model).__name__} are random: it draws random numbers in "
            "evaluation mode, as a hook that adds noise to embeddings does, or dropout without "
            "training=self.training; else pass loss=function(model, batch) -> losses"
        )
    if _share_moved(alone, among) > UNLIKE:
        raise TypeError(
            f"what {type(model).__name__} predicts of a text depends on the other texts of its "
            "batch, or on the padding after it: pass loss=function(model, batch) -> losses, and "
            "batch_size=1"
        )


def _share_moved(found: Tensor, wanted: Tensor) -> float:
    """How far logits are from others, as a share of these: the median of all tokens.

    Two experts may be as likely for a token, and rounding decide.
    """
    moved, size = (
        (logits - logits.mean(dim=-1, keepdim=True)).square().mean(dim=-1).sqrt()
        for logits in (found - wanted, wanted)
    )
    return float((moved / size).median())


def require_decoder_only(model: nn.Module) -> None:
    """Refuse an encoder-decoder model, whose encoder would read the response.

    Raises:
        NotCausalError: for such a model.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        raise NotCausalError(
            f"{type(model).__name__} is an encoder-decoder model, no causal one: its encoder would "
            "read the response that it shall predict. Score it with flowdata.Seq2Seq, with the "
            "prompt as source or input_ids, and the response as target or labels"
        )


def require_encoder_decoder(model: nn.Module, accepted: frozenset[str]) -> None:
    """Refuse a model that has no decoder of its own, or no use for labels.

    Args:
        model: what shall be scored.
        accepted: names of what its forward takes.

    Raises:
        TypeError: for such a model.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", True) is not True:
        raise TypeError(
            f"{type(model).__name__} is no encoder-decoder model: score a causal one with "
            "flowdata.CausalLM, one that labels tokens or fills in masked ones with "
            "flowdata.TokenLabels"
        )
    if "labels" not in accepted:
        raise TypeError(
            f"the forward of {type(model).__name__} takes no labels, of which the input of its "
            "decoder would be made: pass loss=function(model, batch) -> losses"
        )


def _changed(ids: Tensor, place: int, others: Tensor, trial: int) -> Tensor:
    """The ids with another token at one place."""
    changed = ids.clone()
    candidates = others[others != ids[place]]
    # From the middle: the first are often special.
    changed[place] = candidates[(trial + 1) * len(candidates) // (_TRIALS + 1)]
    return changed


def _moved(
    as_it_is: Tensor, logits_of: Callable[[Tensor], Tensor], ids: Tensor, place: int
) -> float:
    """How far the logits of these ids are from what they were at one place."""
    moved = logits_of(ids[None])[0, place].float() - as_it_is[place]
    # Softmax does not see what is added to all logits alike.
    return float((moved - moved.mean()).square().mean().sqrt())


def is_quantized(model: nn.Module) -> bool:
    """Whether the activations of a model may depend on all tokens of a batch."""
    # torch 2.13, torch.ao.nn.quantized.dynamic: one scale for the activations of all tokens.
    return any("quant" in type(module).__module__ for module in model.modules()) or any(
        parameter.dtype.itemsize == 1 for parameter in model.parameters()
    )
