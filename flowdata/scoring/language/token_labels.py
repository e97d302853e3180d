"""TokenLabels: models that label tokens or fill in masked ones, where rows have the labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowdata.scoring.language.head import LossesAtPositions
from flowdata.scoring.language.model_inputs import ANY, pad_tokens, require_known
from flowdata.scoring.language.padded_pass import PaddedPass, pad_of
from flowdata.scoring.language.probe_rows import ProbeRows
from flowdata.scoring.layouts.token_batches import require_budget
from flowdata.scoring.layouts.token_rows import Tokens
from flowdata.scoring.layouts.tokens import TokenReader, UnreadableRow


@dataclass(frozen=True)
class TokenLabels:
    """The loss of a model that labels tokens or fills in masked ones: a mean over the labels.

    Rows are dicts with ``input_ids``, masked where the model shall fill in, and ``labels``: -100,
    or any number below 0, where a token has none, as the first alone of a word's has one. Whatever
    else the model's forward takes is given to it.

    Args:
        max_length: longer samples are cut on the right, see `CausalLM`.
        max_tokens: tokens of a batch, padding included, see `CausalLM`.
        token_losses: keep the loss of each label.
    """

    name: ClassVar[str] = "token_labels"
    tokenizer: ClassVar[None] = None

    max_length: int | None = None
    max_tokens: int | None = None
    token_losses: bool = False

    def __post_init__(self) -> None:
        require_budget(self.max_tokens)
        self.reader()

    def reader(self, accepted: frozenset[str] = frozenset()) -> TokenReader:
        """What turns rows into tokens, with what else of a row the model takes, by name."""
        return _LabelReader(max_length=self.max_length, accepted=accepted)

    def identity(self) -> dict[str, Any]:
        """The options that change losses, JSON-able."""
        return {"max_length": self.max_length, "token_losses": self.token_losses}


class _LabelReader(TokenReader):
    """Reads rows that have labels: no mask of scored tokens stands in for them."""

    def _try_to_read(self, row: Any) -> Any:
        missing = {"input_ids", "labels"} - row.keys() if isinstance(row, Mapping) else None
        if missing:
            return UnreadableRow(
                ValueError,
                f"there is no column {sorted(missing)}, the columns are {sorted(map(str, row))}: "
                "tokenize words first, and label each token by its class, or, where it is masked, "
                "by what it was, and by -100 else",
            )
        return super()._try_to_read(row)


class LabelLosses(LossesAtPositions):
    """Losses of labels where they stand: (input_ids, lengths, labels) -> (labelled,)."""

    def __call__(
        self,
        ids: Tensor,
        lengths: Tensor | None,
        labels: Tensor,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Losses of all labels >= 0, row by row; see `TokenLosses` for the arguments."""
        keywords = self.keywords(ids, lengths, inputs)
        chosen = (labels >= 0).nonzero(as_tuple=True)
        return self.at(ids, keywords, chosen, labels[chosen], whole=bool(inputs))


class TokenLabelPass(PaddedPass):
    """Scores labelled tokens in batches of similar length."""

    losses_of = LabelLosses
    advice = ". A causal model, which predicts the next token, is scored with flowdata.CausalLM"

    def __init__(
        self,
        options: TokenLabels,
        model: nn.Module,
        device: torch.device,
        probe: ProbeRows | None = None,
    ) -> None:
        super().__init__(options, model, device, probe)
        self._pad = pad_of(model)
        self._classes = _classes(model, self._losses.vocabulary)

    def _check_labels(self, rows: NDArray[np.int64], labels: Sequence[NDArray[np.int64]]) -> None:
        require_known(rows, labels, self._classes, what="label", least=ANY)

    def _losses_of(self, samples: Sequence[Tokens]) -> Tensor:
        ids, lengths, labels = self._batch(samples)
        return self._inputs.call(samples, partial(self._losses, ids, lengths, labels))

    def _own_inputs(self, sample: Tokens) -> dict[str, Any]:
        if sample.inputs:
            # In which form the model takes them is found out elsewhere.
            return {}
        ids, lengths, labels = self._batch([sample])
        keywords = self._losses.keywords(ids, lengths)
        return {"input_ids": ids, "labels": labels, **keywords}

    def _batch(self, samples: Sequence[Tokens]) -> tuple[Tensor, Tensor | None, Tensor]:
        ids, labels = pad_tokens(samples, self._pad)
        sizes = np.array([sample.ids.size for sample in samples])
        lengths = self._to_device(sizes) if samples[0].masked else None
        return self._to_device(ids), lengths, self._to_device(labels)


def _classes(model: Any, vocabulary: int | None) -> int | None:
    """Number of classes of a label: tokens of a model that fills in, labels of one that labels."""
    find = getattr(model, "get_output_embeddings", None)
    if callable(find) and find() is not None:
        return vocabulary
    found = getattr(getattr(model, "config", None), "num_labels", None)
    return found if isinstance(found, int) else None
