"""``flowdata score --loss``: models of any kind, as they were saved, by the loss they compute."""

import json

import pytest
from vision_models import bert_sequences, own_losses, segformer

import flowdata
from flowdata.commands.cli import main


@pytest.fixture
def write(tmp_path):
    """Saves a model and rows, and gives the command that scores them."""

    def save(model, rows, *options):
        model.save_pretrained(tmp_path / "model")
        data = tmp_path / "rows.jsonl"
        lists = [{name: value.tolist() for name, value in row.items()} for row in rows]
        data.write_text("".join(f"{json.dumps(row)}\n" for row in lists))
        places = ["--model", tmp_path / "model", "--data", data, "--output", tmp_path / "t.parquet"]
        return ["score", *map(str, places), *options]

    return save


@pytest.mark.parametrize("loss", ["classification", "model"])
@pytest.mark.parametrize("problem", ["classes", "several labels, named"])
def test_a_classifier_is_scored_by_its_own_loss(write, tmp_path, problem, loss):
    model, rows = bert_sequences(problem)
    assert main(write(model, rows, "--loss", loss)) == 0
    table = flowdata.LossTable.load(tmp_path / "t.parquet")
    assert table.losses == pytest.approx(own_losses(model, rows), rel=1e-5)
    assert table.provenance.loss == loss


def test_images_of_several_sizes_may_stand_in_a_file(write, tmp_path):
    model, rows = segformer()
    assert main(write(model, rows[:6], "--loss", "classification")) == 0
    table = flowdata.LossTable.load(tmp_path / "t.parquet")
    assert table.losses == pytest.approx(own_losses(model, rows[:6]), rel=1e-5)


def test_what_is_for_language_alone_is_refused_with_another_loss(write, capsys):
    model, rows = bert_sequences("classes")
    assert main(write(model, rows, "--loss", "model", "--max-length", "4")) == 1
    assert "--max-length is for --loss causal_lm" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_say_what_it_is_is_refused(write, tmp_path, capsys):
    model, rows = bert_sequences("classes")
    command = write(model, rows, "--loss", "model")
    place = tmp_path / "model" / "config.json"
    config = json.loads(place.read_text()) | {"architectures": ["MyOwn"]}
    place.write_text(json.dumps(config))
    assert main(command) == 1
    assert "names no class of transformers" in capsys.readouterr().err
    del model.classifier
    model.save_pretrained(tmp_path / "model")
    config["architectures"] = ["BertForTokenClassification"]
    place.write_text(json.dumps(config))
    assert main(command) == 1
    assert "has no classifier" in capsys.readouterr().err
