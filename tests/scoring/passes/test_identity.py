"""What makes two passes into one output the same pass."""

from functools import partial

import datasets
import pytest
import torch
from scoring_lines import Line, Stop, scored, values
from torch import nn

from flowdata import CausalLM, FlowDataWarning, MismatchError, score


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": Line(2.0)}, "model_hash"),
        ({"data": values(49)}, "it has rows=50, here it is 49"),
        ({"data": values(50)[::-1]}, "data_fingerprint"),
        (
            {"loss": lambda model, batch: model(batch)},
            "it has loss='absolute', here it is '<lambda>'",
        ),
    ],
)
def test_another_pass_into_the_same_output_is_refused(unfinished, finished, change, named):
    if finished:
        scored(unfinished)
    with pytest.raises(MismatchError, match=named):
        scored(unfinished, **change)
    assert scored(unfinished).losses.tolist() == list(range(50))


class Tokens(nn.Module):
    """A language model that stops before batch number ``most``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20)
        self.batches, self.most = 0, None

    def forward(self, ids):
        if self.batches == self.most:
            raise Stop
        self.batches += 1
        return self.out(self.embed(ids).cumsum(dim=1))


@pytest.mark.parametrize("finished", [False, True])
def test_other_options_of_a_language_model_are_refused(tmp_path, finished):
    output, model = tmp_path / "losses.parquet", Tokens()
    rows = [{"input_ids": [row, 3, 2], "labels": [-100, 3, 2]} for row in range(20)]

    def run(**options):
        loss = CausalLM(**{"token_losses": True, "max_tokens": 9} | options)
        return score(model, rows, loss, output=output, save_every=0.0, progress=False)

    # Batches by which it is found out whether the model is causal, and always alike.
    first = 2 + 3
    model.most = None if finished else first + 4
    if finished:
        run()
    else:
        with pytest.raises(Stop):
            run()
    model.most = None
    for change in ({"max_length": 2}, {"token_losses": False}):
        with pytest.raises(MismatchError, match=next(iter(change))) as error:
            run(**change)
        # What does not differ is not listed.
        assert str(error.value).count("here it is") == 1
    # The budget of tokens changes no loss.
    model.batches = 0
    table = run(max_tokens=3)
    assert model.batches == (0 if finished else first + 8)
    assert table.n_tokens.tolist() == [2] * 20
    assert table.token_losses.size == 40
    expected = score(model, rows, "causal_lm", progress=False).losses
    assert table.losses == pytest.approx(expected, rel=1e-6)


def scaled(model, batch, factor=1.0):
    return model(batch).abs() * factor


def times(factor):
    def loss(model, batch):
        return model(batch).abs() * factor

    return loss


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        (lambda m, b: m(b).abs(), lambda m, b: m(b).abs(), lambda m, b: m(b).abs() * 2),
        (times(1.0), times(1.0), times(2.0)),
        (partial(scaled, factor=2.0), partial(scaled, factor=2.0), partial(scaled, factor=3.0)),
        (times(torch.ones(1)), times(torch.ones(1)), times(torch.full((1,), 2.0))),
    ],
)
def test_a_loss_of_ones_own_is_known_by_what_it_computes(tmp_path, one, same, other):
    output = tmp_path / "losses.parquet"
    first = scored(output, loss=one)
    assert scored(output, loss=same).losses.tolist() == first.losses.tolist()
    with pytest.raises(MismatchError, match="it has loss_code="):
        scored(output, loss=other)


def test_another_collate_function_is_another_pass(tmp_path):
    output = tmp_path / "losses.parquet"
    scored(output, collate_fn=lambda rows: torch.stack(rows))
    with pytest.raises(MismatchError, match="it has collate_code="):
        scored(output, collate_fn=lambda rows: torch.stack(rows) * 2)


def numbers(rows):
    return torch.tensor([float(row()) for row in rows])


def test_data_that_cannot_be_recognised_is_named_in_a_warning_before_old_losses_are_given(tmp_path):
    class Closed:
        __slots__ = ("number",)

        def __init__(self, number):
            self.number = number

        def __call__(self):
            return self.number

    output = tmp_path / "losses.parquet"
    rows = [Closed(row) for row in range(50)]
    scored(output, rows, collate_fn=numbers)
    with pytest.warns(FlowDataWarning, match="cannot be told whether the table .* this data"):
        scored(output, rows[::-1], collate_fn=numbers)


def test_another_transform_of_the_same_data_is_another_pass(tmp_path):
    output = tmp_path / "losses.parquet"
    plain = datasets.Dataset.from_dict({"x": [float(row) for row in range(50)]})

    def run(factor):
        data = plain.with_transform(lambda rows: {"x": [x * factor for x in rows["x"]]})
        return scored(output, data, collate_fn=lambda rows: torch.tensor([r["x"] for r in rows]))

    assert run(1.0).losses.tolist() == run(1.0).losses.tolist() == list(range(50))
    with pytest.raises(MismatchError, match="it has transform="):
        run(2.0)
