"""The scoring pass: the loss of every sample under the pre-trained model, once."""

from flowdata.scoring.engines.batch_scorer import BatchScorer
from flowdata.scoring.engines.ray_pass import score_on_ray
from flowdata.scoring.engines.tables import read_scored
from flowdata.scoring.language.causal_lm import CausalLM
from flowdata.scoring.language.seq2seq import Seq2Seq
from flowdata.scoring.language.token_labels import TokenLabels
from flowdata.scoring.probe.cross_fitting import score_probe
from flowdata.scoring.probe.linear_probe import linear_probe
from flowdata.scoring.proxy import score_proxy
from flowdata.scoring.row_lengths import lengths
from flowdata.scoring.scorer import score

__all__ = [
    "BatchScorer",
    "CausalLM",
    "Seq2Seq",
    "TokenLabels",
    "lengths",
    "linear_probe",
    "read_scored",
    "score",
    "score_on_ray",
    "score_probe",
    "score_proxy",
]
