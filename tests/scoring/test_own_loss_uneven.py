"""The default loss of models of transformers is their own, of rows of uneven shape, one by one."""

import pytest
from vision_models import MODELS, PROBLEMS, bert_sequences, own_losses, padded

from flowdata import score

# A squared error near 0 is that of two numbers that are rounded.
ROUNDED = 2e-7


def losses(model, rows, *arguments, **options):
    return score(model, rows, *arguments, progress=False, **options).losses


@pytest.mark.parametrize("name", MODELS)
def test_the_default_loss_is_that_of_a_plain_loop(name):
    model, rows = MODELS[name]()
    said = getattr(model.config, "problem_type", None)
    wanted = own_losses(model, rows)
    assert len(wanted) == 40
    assert losses(model, rows, batch_size=16) == pytest.approx(wanted, rel=1e-5, abs=ROUNDED)
    assert getattr(model.config, "problem_type", None) == said


@pytest.mark.parametrize("problem", PROBLEMS)
def test_it_is_so_of_batches_that_a_collate_fn_pads(problem):
    model, rows = bert_sequences(problem)
    found = losses(model, rows, batch_size=16, collate_fn=padded)
    assert found == pytest.approx(own_losses(model, rows), rel=1e-5, abs=ROUNDED)
