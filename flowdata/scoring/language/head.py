"""Cross-entropy of a causal language model at the labelled positions, and only there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowdata.scoring.language.causality import (
    require_causal,
    require_decoder_only,
    require_same_predictions,
)
from flowdata.scoring.language.model_inputs import accepted_names
from flowdata.scoring.language.own_token_loss import has_own_loss, require_own_loss
from flowdata.scoring.layouts.token_rows import IGNORED
from flowdata.scoring.models.batch_dependence import rotary_limit
from flowdata.scoring.models.inference import move

LOGITS_BYTES = 1 << 27
"""Logits of this many bytes (in float32) exist at a time."""

_CACHED_BYTES = 1 << 22
_PROBE_TOKENS = 8
_MASK_TOKENS = 24
_OWN_TOKENS = 16
_SAME_TOKENS = 24


class LossesAtPositions:
    """Cross-entropy at some positions of a model that gives logits at all of them.

    A language model ends in an output head that makes V logits of each hidden state. Where the
    model's logits are just what its head gives, then scaled and capped as the configuration says
    (found out once, on a few tokens), the head is kept from seeing any but one position, and is
    then applied to the hidden states of labelled positions, some at a time: logits of shape
    (batch, length, V) never exist. Where the labelled positions of the whole batch are few, or
    something else is done to the logits after the head, it is given these at once. A module
    without such a head gives all logits.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._arguments = accepted_names(model)
        self._head = _output_head(model)
        self._hidden: list[Tensor] = []
        self._scaling: _LogitScaling | None = None
        self._width = 0
        self._probed = False
        self.vocabulary = vocabulary_of(model)

    def at(
        self,
        ids: Tensor,
        keywords: dict[str, Any],
        chosen: tuple[Tensor, ...],
        targets: Tensor,
        *,
        whole: bool = False,
    ) -> Tensor:
        """Losses of the targets at the chosen positions, in their order.

        Args:
            ids: shape (B, T); a position is a pair of indices.
            keywords: what else forward takes.
            chosen: indices along either axis of ids.
            targets: a class for each position.
            whole: whether the model takes no part of the batch alone.

        Raises:
            TypeError: when the model gives no logits, or not one for each of the ids.
        """
        if not self._probed:
            self._probe(ids, keywords, whole=whole)
        if self._head is None:
            logits = _take(self._forward(ids, keywords), chosen, ids)
            return _in_chunks(logits, targets, lambda part: part)
        if self._scaling is None or 0 < len(chosen[0]) <= self._most_rows:
            logits = self._forward_with_head_on(
                lambda hidden: _take(hidden, chosen, ids)[None], ids, keywords
            )[0]
            return _in_chunks(logits, targets, lambda part: part)
        self._forward_with_head_on(lambda hidden: hidden[:, :1], ids, keywords)
        hidden = _take(self._hidden.pop(), chosen, ids)
        head, scaling = self._head, self._scaling
        return _in_chunks(hidden, targets, lambda part: scaling(head(part)))

    @property
    def _most_rows(self) -> int:
        """Positions whose logits may exist at a time."""
        return max(LOGITS_BYTES // (4 * self._width), 1)

    def keywords(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Any]:
        """What forward is given beside ids that are padded on the right."""
        keywords: dict[str, Any] = dict(inputs or {})
        if lengths is not None and self.takes("attention_mask"):
            mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
            keywords["attention_mask"] = mask.long()
        # Keys and values of the whole batch would be kept for a next token that never comes.
        if self.takes("use_cache"):
            keywords["use_cache"] = False
        return keywords

    def takes(self, name: str) -> bool:
        """Whether forward takes an argument of this name."""
        return name in self._arguments

    def _run(self, ids: Tensor, keywords: Mapping[str, Any]) -> Any:
        """What forward gives."""
        if self.takes("input_ids"):
            return self._model(input_ids=ids, **keywords)
        return self._model(ids, **keywords)

    def _probe(self, ids: Tensor, keywords: dict[str, Any], *, whole: bool) -> None:
        """Find out whether the head is there, is called once, and what comes after it."""
        if not whole:
            # A beginning of the first row will do, but an image goes with all of its row.
            ids = ids[:1, :_PROBE_TOKENS]
            keywords = {
                name: value[:1, :_PROBE_TOKENS] if isinstance(value, Tensor) else value
                for name, value in keywords.items()
            }
        if self._head is not None:
            logits = self._forward_with_head_on(lambda hidden: hidden, ids, keywords)
            if len(self._hidden) != 1 or self._hidden[0].shape[:2] != ids.shape:
                self._head = None
            else:
                few = slice(_PROBE_TOKENS)
                scaling = _LogitScaling.of(self._model)
                again = scaling(self._head(self._hidden[0][:, few])).to(logits.device)
                # Exactly, because a soft cap changes small logits next to nothing.
                if torch.equal(again.float(), logits[:, few].float()):
                    self._scaling, self._width = scaling, again.shape[-1]
            self._hidden.clear()
        self._probed = True

    def _forward_with_head_on(
        self, select: Callable[[Tensor], Tensor], ids: Tensor, keywords: Mapping[str, Any]
    ) -> Tensor:
        """A forward pass whose head sees only ``select(hidden states)``; keeps all of them."""

        def before(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            self._hidden.append(arguments[0])
            return (select(arguments[0]), *arguments[1:])

        assert self._head is not None
        self._hidden.clear()
        hook = self._head.register_forward_pre_hook(before)
        try:
            return self._forward(ids, keywords)
        finally:
            hook.remove()

    def _forward(self, ids: Tensor, keywords: Mapping[str, Any]) -> Tensor:
        output = self._run(ids, keywords)
        logits = getattr(output, "logits", output)
        if not isinstance(logits, Tensor) or logits.ndim != 3:
            raise TypeError(
                f"a model of language must give logits of shape (batch, length, vocabulary), "
                f"{type(self._model).__name__} gave {type(logits).__name__} "
                f"{tuple(getattr(logits, 'shape', ()))}: load it with its head of language, as by "
                "AutoModelForCausalLM, or score it by another loss"
            )
        return logits


class TokenLosses(LossesAtPositions):
    """Losses of labelled tokens: (input_ids, lengths, labels) -> float32 of shape (labelled,)."""

    def __init__(self, model: nn.Module) -> None:
        require_decoder_only(model)
        super().__init__(model)
        self._needs_mask: bool | None = None

    def __call__(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        labels: Tensor,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Losses of all positions t >= 1 with a label >= 0, row by row.

        Args:
            ids: shape (B, T), padded on the right.
            lengths: shape (B,); None for a row that the model shall have no attention mask of.
            labels: shape (B, T); label t is predicted from position t - 1. Labels on the CPU let
                a GPU go on: which of them count decides shapes, for which it would be waited.
            inputs: what else the model takes.

        Raises:
            TypeError: when the model gives no logits, or not one for each of the ids.
        """
        keywords = self.keywords(ids, lengths, inputs)
        targets = labels[:, 1:]
        chosen = (targets >= 0).nonzero(as_tuple=True)
        if not self._probed:
            require_causal(self._model, self._logits_of_text, ids, labels, text_alone=not inputs)
            if not inputs and rotary_limit(self._model) is None:
                require_same_predictions(self._model, self._logits_of_batch, ids[0, :_SAME_TOKENS])
            if not inputs and len(chosen[0]) and has_own_loss(self._model):
                self._compare_with_own(ids, labels, chosen)
        if not inputs and "attention_mask" in keywords:
            if self._needs_mask is None:
                self._needs_mask = not self._is_same_unmasked(ids.device)
            if not self._needs_mask:
                del keywords["attention_mask"]
        return self.at(ids, keywords, chosen, targets[chosen], whole=bool(inputs))

    def _is_same_unmasked(self, device: torch.device) -> bool:
        """Whether logits of a text are the same, bit for bit, where padding after it has no mask.

        They should be, as no token sees what comes after it. transformers 5.23, create_causal_mask:
        with padding attention is given a mask of all pairs of tokens; without it, it knows better
        what to leave out. Measured: a tenth of a pass on a CPU and on a GPU. Found out on tokens
        that do not depend on the data, so that all who share a pass find the same.
        """
        if self.vocabulary is None:
            return False
        sizes = [_MASK_TOKENS, _MASK_TOKENS // 3]
        ids = torch.arange(2 * _MASK_TOKENS, device=device).view(2, -1) % self.vocabulary
        ids[1, sizes[1] :] = 0
        lengths = torch.tensor(sizes, device=device)
        try:
            masked, bare = (
                self._forward(ids, self.keywords(ids, some)) for some in (lengths, None)
            )
        # A model may take no such tokens, or want its mask.
        except Exception:
            return False
        pairs = zip(masked, bare, sizes, strict=True)
        return all(torch.equal(one[:size], other[:size]) for one, other, size in pairs)

    def _compare_with_own(self, ids: Tensor, labels: Tensor, chosen: tuple[Tensor, ...]) -> None:
        """Compare a few tokens here and there with the loss that the model computes itself."""
        last = len(chosen[0]) - 1
        for number in sorted({0, last // 2, last}):
            row, place = (int(places[number]) for places in chosen)
            self._compare_around(ids, labels, row, place)

    def _compare_around(self, ids: Tensor, labels: Tensor, row: int, place: int) -> None:
        few = slice(max(place - _OWN_TOKENS, 0), place + 2 + _OWN_TOKENS)
        ids, labels = ids[row : row + 1, few], labels[row : row + 1, few].to(ids.device)
        keywords = self.keywords(ids, torch.full((1,), ids.shape[1], device=ids.device))
        labels = labels.where(labels >= 0, IGNORED)
        scored = (labels[:, 1:] >= 0).nonzero(as_tuple=True)
        losses = self.at(ids, keywords, scored, labels[:, 1:][scored])
        # transformers 5.23: BartForCausalLM and its like do not shift labels themselves.
        require_own_loss(
            self._model,
            {"input_ids": ids, "labels": labels, **keywords},
            losses,
            advice=". If it wants each label at the token before, score with flowdata.TokenLabels",
        )

    def _logits_of_batch(self, ids: Tensor, lengths: Tensor) -> Tensor:
        return _one_for_each(self._forward(ids, self.keywords(ids, lengths)), ids)

    def _logits_of_text(self, ids: Tensor) -> Tensor:
        """All logits of text that is not padded, and has nothing else with it."""
        keywords: dict[str, Any] = {}
        if "attention_mask" in self._arguments:
            keywords["attention_mask"] = torch.ones_like(ids)
        if "use_cache" in self._arguments:
            keywords["use_cache"] = False
        return _one_for_each(self._forward(ids, keywords), ids)


@dataclass(frozen=True)
class _LogitScaling:
    """What the configuration of a model says is done to its logits after the head."""

    divisor: float | None = None
    factor: float | None = None
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> "_LogitScaling":
        config = text_config(model)
        # transformers 5.23: GraniteForCausalLM.forward divides the logits by logits_scaling,
        # CohereForCausalLM.forward multiplies them by logit_scale, Gemma2ForCausalLM.forward caps
        # them softly at final_logit_softcapping.
        names = ("logits_scaling", "logit_scale", "final_logit_softcapping")
        found = (getattr(config, name, None) for name in names)
        return cls(*(float(value) if isinstance(value, int | float) else None for value in found))

    def __call__(self, logits: Tensor) -> Tensor:
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.factor is not None:
            logits = logits * self.factor
        if self.cap is not None:
            logits = torch.tanh(logits / self.cap) * self.cap
        return logits


def text_config(model: Any) -> Any:
    """The configuration of a transformers model, or of its language part; None without one."""
    config = getattr(model, "config", None)
    # transformers 5.23, PreTrainedConfig.get_text_config: a model of text and images has the
    # sizes of its language part in a configuration inside its own.
    find = getattr(config, "get_text_config", None)
    if not callable(find):
        return config
    # That of the decoder, where there are two.
    return find(decoder=True) if getattr(config, "is_encoder_decoder", False) is True else find()


def _take(values: Tensor, positions: tuple[Tensor, ...], ids: Tensor) -> Tensor:
    """Values at these positions of ids, which may lie on another device."""
    return _one_for_each(values, ids)[tuple(move(place, values.device) for place in positions)]


def _one_for_each(values: Tensor, ids: Tensor) -> Tensor:
    """The values, of which there is one for each of the ids.

    Raises:
        TypeError: where there is not.
    """
    if values.shape[:2] != ids.shape:
        raise TypeError(
            f"the model makes {tuple(values.shape[:2])} of input_ids of shape {tuple(ids.shape)}, "
            "so it is not known which token a logit is of: give rows in which each token of an "
            "image has its place in input_ids; where an adapter puts tokens of its own before "
            'them, as prompt tuning does, pass loss="model"'
        )
    return values


def _in_chunks(inputs: Tensor, targets: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Cross-entropy of some positions at a time; float32 whatever the model computes in."""
    if not len(targets):
        return torch.zeros(0)
    width = logits_of(inputs[:1]).shape[-1]
    step = max(LOGITS_BYTES // (4 * width), 1)
    losses = []
    for part, target in zip(torch.split(inputs, step), torch.split(targets, step), strict=True):
        logits = logits_of(part)
        losses.append(_cross_entropy(logits, move(target, logits.device)))
    return torch.cat(losses)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The same of few rows at a time on a CPU, whose log-softmax stays in its cache.

    Measured, 330 rows of 49,152 logits on 2 cores: 6 ms for 22 ms of float32, 7 for 39 of bfloat16.
    """
    rows = max(_CACHED_BYTES // (4 * logits.shape[-1]), 1)
    some = len(targets) if logits.device.type != "cpu" else rows
    parts = zip(torch.split(logits, some), torch.split(targets, some), strict=True)
    return torch.cat([F.cross_entropy(part.float(), of, reduction="none") for part, of in parts])


def _output_head(model: Any) -> nn.Module | None:
    # transformers 5.23, EmbeddingAccessMixin.get_output_embeddings: the lm_head, else None.
    find = getattr(model, "get_output_embeddings", None)
    head = find() if callable(find) else None
    return head if isinstance(head, nn.Module) else None


def vocabulary_of(model: Any) -> int | None:
    """Number of tokens the model can read and predict, if it says."""
    find = getattr(model, "get_input_embeddings", None)
    try:
        embeddings = find() if callable(find) else None
    # transformers 5.23, EmbeddingAccessMixin: a model of characters has no table of tokens.
    except NotImplementedError:
        return None
    return embeddings.num_embeddings if isinstance(embeddings, nn.Embedding) else None
