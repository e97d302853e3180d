"""The losses of models of language, by name."""

from typing import Any, TypeAlias

import torch
from torch import nn

from flowdata.scoring.language.causal_lm import CausalLM, LanguagePass
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.language.seq2seq import Seq2Seq, Seq2SeqPass
from flowdata.scoring.language.token_labels import TokenLabelPass, TokenLabels

LanguageLoss: TypeAlias = CausalLM | Seq2Seq | TokenLabels
"""What says how rows of language are read and scored."""

LANGUAGE_LOSSES: dict[str, type[LanguageLoss]] = {
    kind.name: kind for kind in (CausalLM, Seq2Seq, TokenLabels)
}


def language_loss(loss: Any) -> LanguageLoss | None:
    """The options of a loss of language, of its name those that it has by default."""
    if isinstance(loss, str) and loss in LANGUAGE_LOSSES:
        return LANGUAGE_LOSSES[loss]()
    return loss if isinstance(loss, LanguageLoss) else None


def language_pass(
    loss: LanguageLoss,
    model: nn.Module,
    device: torch.device,
    probe: ProbeRows | None = None,
) -> LanguagePass:
    """The pass that scores by a loss of language.

    Args:
        loss: which.
        model: in evaluation mode.
        device: where batches go.
        probe: rows of the data set by which all who share a pass decide alike.
    """
    if isinstance(loss, Seq2Seq):
        return Seq2SeqPass(loss, model, device, probe)
    if isinstance(loss, TokenLabels):
        return TokenLabelPass(loss, model, device, probe)
    return LanguagePass(loss, model, device, probe)
