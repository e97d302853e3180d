"""Seq2Seq: how the samples of an encoder-decoder model are read and scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.errors import warn
from flowdata.scoring.language.causal_lm import dtype_of
from flowdata.scoring.language.causality import require_encoder_decoder
from flowdata.scoring.language.head import LossesAtPositions
from flowdata.scoring.language.model_inputs import pad_right, require_known
from flowdata.scoring.language.padded_pass import PaddedPass, pad_of
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.layouts.pairs import Pair, PairReader
from flowdata.scoring.layouts.token_batches import require_budget
from flowdata.scoring.layouts.token_rows import IGNORED, Tokens
from flowdata.scoring.layouts.tokenizer_identity import tokenizer_hash
from flowdata.scoring.models.inference import move

_MOST_LOGITS = 1 << 30
"""Bytes of logits that may exist at a time."""


@dataclass(frozen=True)
class Seq2Seq:
    """The loss of an encoder-decoder model: mean cross-entropy over the tokens of the target.

    Rows are dicts: with ``labels`` (-100, or any number below 0, where a token is not scored) and
    ``input_ids``, ``input_features`` or what else the encoder reads, or with text in the columns
    named here. What the decoder is fed is what the model makes of labels, or the row's own
    ``decoder_input_ids``. A row with None in a column has no token that is scored.

    Args:
        tokenizer: that of the model, for rows of text: the source becomes ``tokenizer(source)``,
            the target ``tokenizer(text_target=target)``, in its ``src_lang`` and ``tgt_lang``.
        source, target: columns of text; the target alone where a row has ``input_features``.
        max_source_length, max_target_length: longer ones are cut on the right, texts by the
            tokenizer, which keeps the token at the end.
        max_tokens: tokens of a batch, of source and target and padding, see `CausalLM`.
        token_losses: keep the loss of each token of the target.

    Raises:
        ValueError: for columns without a tokenizer, a source without a target, or a tokenizer that
            does not know the language of the target.
    """

    name: ClassVar[str] = "seq2seq"

    tokenizer: Any = None
    source: str | None = None
    target: str | None = None
    max_source_length: int | None = None
    max_target_length: int | None = None
    max_tokens: int | None = None
    token_losses: bool = False

    def __post_init__(self) -> None:
        require_budget(self.max_tokens)
        self.reader()

    def reader(self, accepted: frozenset[str] | None = None) -> PairReader:
        """What turns rows into tokens, with what else of a row the model takes, by name."""
        lengths = (self.max_source_length, self.max_target_length)
        return PairReader(self.tokenizer, self.source, self.target, *lengths, accepted)

    def identity(self) -> dict[str, Any]:
        """The options that change losses, JSON-able."""
        options: dict[str, Any] = {
            "source": self.source,
            "target": self.target,
            "max_source_length": self.max_source_length,
            "max_target_length": self.max_target_length,
            "token_losses": self.token_losses,
        }
        if self.tokenizer is not None:
            options["tokenizer"] = tokenizer_hash(self.tokenizer)
            for name in ("src_lang", "tgt_lang"):
                if (language := getattr(self.tokenizer, name, None)) is not None:
                    options[name] = str(language)
        return options


class TargetLosses(LossesAtPositions):
    """Losses of the labels of a target: (inputs of forward, labels) -> (labelled,).

    The model is given the labels, of which it makes what its decoder reads: tokens, and in some
    models a mask. So it gives logits of all of them, of which nearly all are needed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        require_encoder_decoder(model, self._arguments)
        self.classes = _classes(self._head)
        self._head = None

    def __call__(self, inputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
        """Losses of all labels >= 0, row by row.

        Args:
            inputs: of the encoder; of the decoder where rows have them.
            labels: shape (B, T), -100 where there is none.
        """
        chosen = (labels >= 0).nonzero(as_tuple=True)
        return self.at(labels, dict(inputs), chosen, labels[chosen])

    def _run(self, ids: Tensor, keywords: Mapping[str, Any]) -> Any:
        return self._model(labels=ids, **keywords)


class Seq2SeqPass(PaddedPass):
    """Scores pairs in batches whose sources, and whose targets, are of similar length."""

    losses_of = TargetLosses

    def __init__(
        self,
        options: Seq2Seq,
        model: nn.Module,
        device: torch.device,
        probe: ProbeRows | None = None,
    ) -> None:
        super().__init__(options, model, device, probe)
        config: Any = getattr(model, "config", None)
        self._dtype = dtype_of(model)
        self._pad = pad_of(model)
        self._start = getattr(config, "decoder_start_token_id", None)
        self._contexts = _contexts(config)
        self._warned_of_start = False

    def _check_lengths(self, rows: NDArray[np.int64], samples: Sequence[Tokens]) -> None:
        for side, name in (("source", "ids"), ("target", "labels")):
            sizes = np.array([getattr(sample, name).size for sample in samples])
            limit, longest = self._contexts[side], int(sizes.argmax())
            if limit is not None and sizes[longest] > limit:
                raise ValueError(
                    f"row {rows[longest]} has {sizes[longest]:,} tokens in its {side}, the model "
                    f"takes {limit:,}; pass max_{side}_length={limit} to cut longer ones"
                )

    def _check_labels(self, rows: NDArray[np.int64], labels: Sequence[NDArray[np.int64]]) -> None:
        require_known(rows, labels, self._losses.classes, what="label", least=IGNORED)
        begin = {int(some[0]) for some in labels if some.size}
        if begin == {self._start} and not self._warned_of_start:
            self._warned_of_start = True
            warn(
                f"the labels of row {rows[0]} and others begin with token {self._start}, which the "
                "model puts before the labels itself: it is fed twice, and scored. Where training "
                "takes it off, as for Whisper, take it off the labels"
            )

    def _losses_of(self, samples: Sequence[Tokens]) -> Tensor:
        # The model computes a loss of the batch too, of a copy of all logits.
        wide = 8 * (self._losses.classes or 1) * max(sample.labels.size for sample in samples)
        rows = max(_MOST_LOGITS // wide, 1)
        return torch.cat(
            [
                self._losses(*self._batch(samples[start : start + rows]))
                for start in range(0, len(samples), rows)
                if any((sample.labels >= 0).any() for sample in samples[start : start + rows])
            ]
        )

    def _own_inputs(self, sample: Tokens) -> dict[str, Any]:
        inputs, labels = self._batch([sample])
        return {**inputs, "labels": labels}

    def _batch(self, samples: Sequence[Tokens]) -> tuple[dict[str, Tensor], Tensor]:
        """What forward takes of samples, source and target padded on the right."""
        pairs = [sample for sample in samples if isinstance(sample, Pair)]
        found: dict[str, Tensor] = {}
        if pairs[0].ids.size:
            sizes = torch.tensor([pair.ids.size for pair in pairs])
            found["input_ids"] = pad_right(
                [torch.from_numpy(pair.ids) for pair in pairs], self._pad
            )
            if self._losses.takes("attention_mask"):
                width = found["input_ids"].shape[1]
                found["attention_mask"] = (torch.arange(width) < sizes[:, None]).long()
        for name in pairs[0].inputs:
            values = [pair.inputs[name] for pair in pairs]
            if pairs[0].is_whole(name):
                whole = torch.stack(values)
                found[name] = whole.to(self._dtype) if whole.is_floating_point() else whole
            else:
                found[name] = pad_right(values, self._pad if name.endswith("input_ids") else 0)
        labels = pad_right([torch.from_numpy(pair.labels) for pair in pairs], IGNORED)
        moved = {name: move(value, self._device) for name, value in found.items()}
        return moved, move(labels, self._device)


def _contexts(config: Any) -> dict[str, int | None]:
    """The most tokens of source and target, None where there is no limit."""
    # transformers 5.23, PreTrainedConfig.get_text_config.
    find = getattr(config, "get_text_config", None)
    encoder, decoder = (find(encoder=True), find(decoder=True)) if find else (config, config)
    source = getattr(encoder, "max_position_embeddings", None)
    # Whisper and Speech2Text.
    target = getattr(decoder, "max_target_positions", None)
    if target is None:
        target = getattr(decoder, "max_position_embeddings", None)
    return {
        side: limit if isinstance(limit, int) and limit > 0 else None
        for side, limit in (("source", source), ("target", target))
    }


def _classes(head: nn.Module | None) -> int | None:
    """Number of tokens that a head can predict, if it says."""
    weight = getattr(head, "weight", None)
    return len(weight) if isinstance(weight, Tensor) and weight.ndim == 2 else None
