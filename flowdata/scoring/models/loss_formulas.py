"""Losses of a batch, one a sample: cross-entropy, binary cross-entropy and squared error."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""The class index that `torch.nn.functional.cross_entropy` leaves out, unless told another."""

Formula: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> losses of shape (batch size,)."""

# Probabilities that were written with two digits still are probabilities.
_ROUNDED = 0.011


class UnscorableSample(ValueError):
    """A sample of a batch that has no such loss; ``place`` is its place in the batch."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place


def of_classes(output: Tensor, target: Tensor, ignored: int = IGNORED) -> Tensor:
    """Cross-entropy of logits (B, C, ...) with class indices (B, ...).

    Raises:
        UnscorableSample: for a class that the output does not have.
        ValueError: for other shapes.
    """
    if target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f"class indices must be integers, got {target.dtype}")
    if output.ndim < 2 or target.shape != output.shape[:1] + output.shape[2:]:
        raise ValueError(
            f"cross-entropy needs logits (batch, classes, ...) and class indices (batch, ...), "
            f"got {tuple(output.shape)} and {tuple(target.shape)}{_reshaped(output, target)}"
        )
    # F.cross_entropy (torch 2.13) takes int64 and uint8 only, and data sets have any integers.
    target, classes = target.long(), output.shape[1]
    counted = target != ignored
    for place in _places((target.clamp(0, classes - 1) != target) & counted):
        values = target[place][counted[place]]
        bad = values[(values < 0) | (values >= classes)][0].item()
        # Numbers that are usual where there is no class.
        marks = bad < 0 or bad == 255
        advice = f"; if it marks what has no class, pass ignore_index={bad}" if marks else ""
        raise UnscorableSample(
            place, f"the target is class {bad}, the model has classes 0 to {classes - 1}{advice}"
        )
    losses = F.cross_entropy(output, target, reduction="none", ignore_index=ignored)
    # No target at all is 0 / 0: NaN, an invalid loss, not the smallest one.
    return losses.reshape(len(target), -1).sum(dim=1) / counted.reshape(len(target), -1).sum(dim=1)


def of_last_axis(output: Tensor, target: Tensor, ignored: int = IGNORED) -> Tensor:
    """Cross-entropy of logits (B, ..., C), as transformers has them, with indices (B, ...)."""
    return of_classes(output.movedim(-1, 1), target, ignored)


def of_upsampled(
    output: Tensor, target: Tensor, ignored: int = IGNORED, also_ignored: int = IGNORED
) -> Tensor:
    """Cross-entropy of logits (B, C, h, w), brought to the size of class indices (B, H, W).

    As the segmentation models of transformers do it. Image by image: all logits of a batch at full
    size would be hundreds of times the images.

    Raises:
        UnscorableSample, ValueError: see `of_classes`.
    """
    if output.ndim != 4 or target.ndim != 3 or len(output) != len(target):
        raise ValueError(
            f"the cross-entropy of pixels needs logits (batch, classes, height, width) and class "
            f"indices (batch, height, width), got {tuple(output.shape)} and {tuple(target.shape)}"
        )
    target = target.long()
    target = target.masked_fill(target == also_ignored, ignored)
    losses = []
    for place in range(len(output)):
        one = slice(place, place + 1)
        # transformers 5.23, SegformerForSemanticSegmentation.forward.
        logits = F.interpolate(
            output[one], size=target.shape[1:], mode="bilinear", align_corners=False
        )
        try:
            losses.append(of_classes(logits, target[one], ignored))
        except UnscorableSample as error:
            raise UnscorableSample(place, str(error)) from error
    return torch.cat(losses)


def of_next(output: Tensor, target: Tensor, ignored: int = IGNORED) -> Tensor:
    """Cross-entropy of logits (B, T, C) with the indices (B, T) of the tokens that come next."""
    if output.ndim != 3 or target.ndim != 2 or target.shape[1] < 2:
        raise ValueError(f"no logits of tokens: {tuple(output.shape)}, {tuple(target.shape)}")
    return of_last_axis(output[:, :-1], target[:, 1:], ignored)


def of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (B, C, ...) with probabilities of the same shape.

    Raises:
        UnscorableSample: for a row that is no distribution over the classes.
        ValueError: for other shapes.
    """
    _require_one_shape("cross-entropy with probabilities", output, target)
    if not target.is_floating_point() or target.ndim < 2:
        raise ValueError(
            f"probabilities of classes must be floats of shape (batch, classes, ...), "
            f"got {target.dtype} of shape {tuple(target.shape)}"
        )
    for place in _places(~(_are_probabilities(target) | target.isnan().any(dim=1))):
        raise UnscorableSample(place, "the target is no distribution: probabilities add up to 1")
    return _per_sample(F.cross_entropy(output, target.to(output.dtype), reduction="none"))


def of_last_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of logits (B, ..., C) with probabilities of the same shape."""
    _require_one_shape("cross-entropy with probabilities", output, target)
    return of_probabilities(output.movedim(-1, 1), target.movedim(-1, 1))


def of_flags(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of logits with targets of the same shape, from 0 to 1.

    Raises:
        UnscorableSample: for a target outside [0, 1].
        ValueError: for other shapes.
    """
    _require_one_shape("binary cross-entropy", output, target)
    for place in _places((target < 0) | (target > 1)):
        values = target[place]
        bad = values[(values < 0) | (values > 1)].reshape(-1)[0].item()
        raise UnscorableSample(
            place,
            f"the target {bad:g} is no flag (0 or 1) of binary cross-entropy; for numbers pass "
            'loss="mse"',
        )
    loss = F.binary_cross_entropy_with_logits(output, target.to(output.dtype), reduction="none")
    return _per_sample(loss)


def of_values(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of outputs and targets of the same shape.

    Raises:
        ValueError: for other shapes.
    """
    # (B, 1) minus (B,) would broadcast to (B, B).
    _require_one_shape("squared error", output, target)
    return _per_sample((output - target.to(output.dtype)).square())


def of_single_values(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of outputs (B, 1) and targets (B,), or the other way round."""
    return of_values(output.reshape(len(output), -1), target.reshape(len(target), -1))


def are_probabilities(target: Tensor) -> bool:
    """Whether all samples that are finite are distributions over at least two classes."""
    if not target.is_floating_point() or target.ndim < 2 or target.shape[1] < 2:
        return False
    valid = target.isfinite().flatten(1).all(dim=1)
    return bool(valid.any() and _are_probabilities(target[valid]).all())


def are_one_hot(target: Tensor) -> bool:
    """Whether each sample is 1 for one of several classes, and 0 for all others."""
    if target.ndim != 2 or target.shape[1] < 2:
        return False
    return are_flags(target) and bool((target.sum(dim=1) == 1).all())


def are_flags(target: Tensor) -> bool:
    """Whether all finite values are 0 or 1."""
    values = target[target.isfinite()]
    return bool(values.numel() and ((values == 0) | (values == 1)).all())


def _are_whole_floats(target: Tensor) -> bool:
    return target.is_floating_point() and bool((target == target.round()).all())


def _are_probabilities(target: Tensor) -> Tensor:
    whole = target.double()
    return (whole >= 0).all(dim=1) & ((whole.sum(dim=1) - 1).abs() < _ROUNDED)


def _places(bad: Tensor) -> list[int]:
    """The samples of a batch in which anything is bad."""
    if not bad.any():
        return []
    places: list[int] = bad.reshape(len(bad), -1).any(dim=1).nonzero()[:, 0].tolist()
    return places


def _require_one_shape(what: str, output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        raise ValueError(
            f"{what} needs outputs and targets of one shape, got {tuple(output.shape)} and "
            f"{tuple(target.shape)}{_reshaped(output, target)}"
        )


def _reshaped(output: Tensor, target: Tensor) -> str:
    """What to do with targets whose shape is a usual mistake."""
    classes = output.shape[:1] + output.shape[2:]
    advice = ""
    if output.shape == (*target.shape, 1):
        advice = "give targets[:, None], or outputs.squeeze(-1)"
    elif target.shape == (*output.shape, 1):
        advice = "give targets.squeeze(-1)"
    elif output.ndim > 1 and target.ndim == output.ndim and target.shape[1] == 1:
        advice = "give targets.squeeze(1)" if target.squeeze(1).shape == classes else ""
    elif target.shape == classes and _are_whole_floats(target):
        advice = "give class indices as integers, targets.long()"
    elif target.shape == output.shape and are_one_hot(target):
        advice = "give class indices, targets.argmax(dim=1)"
    return f": {advice}" if advice else ""


def _per_sample(losses: Tensor) -> Tensor:
    return losses.reshape(losses.shape[0], -1).mean(dim=1)
