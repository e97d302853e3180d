"""The scoring pass: the loss of every sample under the pre-trained model, once."""

from flowdata.scoring.cross_fitting import score_probe
from flowdata.scoring.language import CausalLM
from flowdata.scoring.probe import linear_probe
from flowdata.scoring.proxy import score_proxy
from flowdata.scoring.row_lengths import lengths
from flowdata.scoring.scorer import score

__all__ = ["CausalLM", "lengths", "linear_probe", "score", "score_probe", "score_proxy"]
