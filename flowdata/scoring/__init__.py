"""The scoring pass: the loss of every sample under the pre-trained model, once."""

from flowdata.scoring.probe import linear_probe
from flowdata.scoring.scorer import score

__all__ = ["linear_probe", "score"]
