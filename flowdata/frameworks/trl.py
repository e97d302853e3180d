"""TRL's SFTTrainer: draws from its own tokenized rows, and weighted losses."""

from typing import Any

from numpy.typing import ArrayLike
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from flowdata.core.weights import FlowWeights, HasWeights
from flowdata.map_style.dataset import FlowDataset

# What of its settings gives the rows another order, or other rows.
_MOVING = {
    "packing": "makes other rows of the scored ones",
    "shuffle_dataset": "puts the rows into another order than that of the weights",
}


def draw_from(
    trainer: Any, weights: FlowWeights | HasWeights | ArrayLike, **options: Any
) -> FlowDataset[Any]:
    """Have a trainer of TRL draw from its rows by weight; call it before ``trainer.train()``.

    TRL tokenizes the data set it is given row by row, and takes none but its own kind; so this
    sets ``trainer.train_dataset`` to a `FlowDataset` of what it made.

    Args:
        trainer: an SFTTrainer, or another trainer of TRL with a map-style ``train_dataset``.
        weights: one for each row of the data set that the trainer was given, in that order.
        options: of `FlowDataset`: epoch_size, seed, scheme, alpha, strata.

    Returns:
        The data set that is trained on.

    Raises:
        ValueError: where the trainer has put its rows in another order, or packed them.
        MismatchError: where it has dropped rows.
        TypeError: for a stream.
    """
    for setting, effect in _MOVING.items():
        if getattr(trainer.args, setting, False):
            raise ValueError(f"{setting}=True {effect}: leave it out of the trainer's arguments")
    drawn: FlowDataset[Any] = FlowDataset(trainer.train_dataset, weights, **options)
    trainer.train_dataset = drawn
    return drawn


def weighted_loss(
    outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None
) -> Tensor:
    """The loss of a causal language model from its logits, in which `reweight` has a say.

    By itself SFTTrainer computes a fused loss of its own, which knows nothing of weights. Give it
    ``SFTTrainer(..., compute_loss_func=weighted_loss)``, and then the data set and collator of
    `flowdata.reweight.reweight`. TRL then runs the model twice a step, for its metrics.

    Args:
        outputs: of the model, with logits of shape (B, T, V).
        labels: shape (B, T).
        num_items_in_batch: what the sum is divided by; default the labels that count.
    """
    loss: Tensor = ForCausalLMLoss(
        outputs.logits,
        labels,
        vocab_size=outputs.logits.shape[-1],
        num_items_in_batch=num_items_in_batch,  # type: ignore[arg-type]
    )
    return loss
