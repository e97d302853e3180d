import inspect

import numpy as np
import pytest
import torch
from long_run import LONG

from flowdata import LossTable
from flowdata.demo import comparison, new_head, turned_digits


@pytest.fixture(scope="module")
def digits():
    return comparison.read_digits(), comparison.read_photographs()


def test_a_task_is_a_function_of_its_seed(digits):
    (images, labels), photos = digits
    first, again, other = (
        turned_digits.make_task(seed, images, labels, photos) for seed in (0, 0, 1)
    )
    for part in ("pre_training", "fine_tuning", "old", "new"):
        pairs = zip(getattr(first, part).tensors, getattr(again, part).tensors, strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(first.fine_tuning.tensors[1], other.fine_tuning.tensors[1])


def test_the_parts_of_a_task_share_no_digit(digits):
    (images, labels), photos = digits
    task = turned_digits.make_task(0, images, labels, photos)
    rows = [
        {image.numpy().tobytes() for image in part.tensors[0]}
        for part in (task.pre_training, task.old)
    ]
    assert len(images) == len(task.pre_training) + len(task.old) + len(task.fine_tuning) - 50
    distinct = {image.numpy().tobytes() for image in images}
    assert len(rows[0] & rows[1]) <= len(images) - len(distinct)


def test_harmful_marks_the_rows_whose_label_is_not_the_digits_own(digits):
    (images, labels), photos = digits
    task = turned_digits.make_task(0, images, labels, photos)
    order = np.random.default_rng(0).permutation(len(images))[800:1300]
    given, own = task.fine_tuning.tensors[1][:500], labels[torch.from_numpy(order)]
    assert np.array_equal((given != own).numpy(), task.harmful[:500])
    assert task.harmful[500:].all()
    assert 0.3 < task.harmful[:500].mean() < 0.5


def test_turning_moves_every_pixel_by_30_degrees():
    image = torch.zeros(1, 1, 33, 33)
    image[0, 0, 16, 28] = 1.0
    turned = turned_digits.turn(image)[0, 0]
    row, column = divmod(int(turned.argmax()), 33)
    assert np.hypot(row - 16, column - 16) == pytest.approx(12, abs=1)
    assert abs(np.degrees(np.arctan2(row - 16, column - 16))) == pytest.approx(30, abs=4)


def test_the_training_loop_knows_nothing_of_flow():
    source = inspect.getsource(comparison.train).split('"""')[2]
    assert "flow" not in source.lower()
    assert "weight" not in source.lower()


@pytest.mark.slow
def test_flow_keeps_clearly_more_than_plain_training_and_both_controls(tmp_path):
    runs = turned_digits.run(seeds=3, output=tmp_path)
    kept = {
        method: np.mean([run.results[method].old for run in runs]) for method in runs[0].results
    }
    assert list(kept) == [
        "pre-trained",
        "shuffle=True",
        "FlowSampler",
        'FlowSampler, "distinct"',
        "control: lr x mean(w)",
        "control: steps x mean(w)",
    ]
    before, plain, flow, distinct, *controls = kept.values()
    assert min(flow, distinct) > max(plain, *controls) + 5
    assert before > max(flow, distinct)

    text = turned_digits.report(runs)
    assert all(method in text for method in kept)
    assert f"{plain:.1f} ±" in text
    assert "kept more in 3 of 3 runs" in text

    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    tables = sorted(tmp_path.glob("losses-*.parquet"))
    assert len(tables) == 3
    assert len(LossTable.load(tables[0])) == 550
    assert len(list(tmp_path.iterdir())) == 4


def test_a_task_with_a_new_head_is_a_function_of_its_seed_and_has_other_digits(digits):
    (images, labels), photos = digits
    task, again, other = (new_head.make_task(seed, images, labels, photos) for seed in (0, 0, 1))
    for part in ("pre_training", "fine_tuning", "old", "new"):
        pairs = zip(getattr(task, part).tensors, getattr(again, part).tensors, strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(task.fine_tuning.tensors[0], other.fine_tuning.tensors[0])
    own = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}

    def classes(data, rows=slice(None)):
        return np.array([own[image.numpy().tobytes()] for image in data.tensors[0][rows]])

    for part in ("pre_training", "old"):
        data = getattr(task, part)
        assert np.array_equal(classes(data), data.tensors[1].numpy())
        assert data.tensors[1].max() == 4
    assert np.array_equal(classes(task.new) - 5, task.new.tensors[1].numpy())
    given = task.fine_tuning.tensors[1].numpy()
    assert set(given.tolist()) == set(range(5))
    wrong = given[:500] != classes(task.fine_tuning, slice(500)) - 5
    assert np.array_equal(wrong, task.harmful[:500])
    assert task.harmful[500:].all()
    assert 0.3 < wrong.mean() < 0.5


@pytest.mark.slow
def test_with_a_new_head_scores_out_of_fold_find_what_is_harmful(tmp_path, monkeypatch):
    if not LONG:
        monkeypatch.setattr(comparison, "EPOCHS", 6)
    (run,) = new_head.run(seeds=1, output=tmp_path)
    assert list(run.results) == [
        "linear probe",
        "shuffle=True",
        "FlowSampler",
        "FlowSampler, own rows",
        "control: lr x mean(w)",
        "control: steps x mean(w)",
    ]
    drawn = run.drawn(run.weights)
    assert drawn < 0.7 * run.harmful.mean()
    assert drawn < run.drawn(run.own_rows)
    before, plain, flow = (run.results[name] for name in list(run.results)[:3])
    assert before.old > 95
    assert flow.old > plain.old

    text = new_head.report([run])
    assert all(method in text for method in run.results)
    assert f"{drawn:.0%} of what FlowSampler draws" in text
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    (table,) = tmp_path.glob("losses-*.parquet")
    assert np.array_equal(LossTable.load(table).losses, run.losses)
