"""The scoring pass: the loss of every sample under the pre-trained model, once."""

from flowdata.scoring.batch_scorer import BatchScorer
from flowdata.scoring.cross_fitting import score_probe
from flowdata.scoring.engine_tables import read_scored
from flowdata.scoring.language import CausalLM
from flowdata.scoring.probe import linear_probe
from flowdata.scoring.proxy import score_proxy
from flowdata.scoring.ray_pass import score_on_ray
from flowdata.scoring.row_lengths import lengths
from flowdata.scoring.scorer import score
from flowdata.scoring.seq2seq import Seq2Seq
from flowdata.scoring.token_labels import TokenLabels

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
