import json
import math
import time
from collections import Counter
from pathlib import Path

import pytest
import torch.distributed as dist
from launching import PROGRAMS, ForkedRanks, environment
from scoring_lines import rows_saved

from flowdata import FlowDataError, LossTable
from flowdata.scoring.passes.ranks import Ranks

PROGRAM = PROGRAMS / "score_rows.py"
ROWS = 101


def start(ranks, config):
    output = Path(config["log"] + ".txt")
    return ForkedRanks([str(PROGRAM), json.dumps(config)], environment(), output, ranks), output


def finish(started, *, code=0):
    running, output = started
    assert running.wait(300) == code, output.read_text()
    return output.read_text()


def configured(folder, **options):
    folder.mkdir(exist_ok=True)
    config = {"kind": "language", "rows": ROWS, "output": str(folder / "losses.parquet")}
    config |= {"log": str(folder / "log"), "result": str(folder / "result")}
    return config | options


def logged(config):
    path = Path(config["log"])
    return Counter(int(row) for row in path.read_text().split()) if path.exists() else Counter()


def results(config, ranks):
    return [json.loads(Path(f"{config['result']}.{rank}").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and token losses of a pass in one process."""
    config = configured(tmp_path_factory.mktemp("alone"), output=None)
    finish(start(1, config))
    (found,) = results(config, 1)
    return found


def same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert found[2] == [2 + row % 9 for row in range(ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kept", [False, True])
def test_ranks_share_the_rows_and_all_get_the_whole_table(tmp_path, alone, ranks, kept):
    config = configured(tmp_path, **({} if kept else {"output": None}))
    finish(start(ranks, config))
    assert logged(config) == Counter(range(ROWS))
    for found in results(config, ranks):
        same(found, alone)
    assert (tmp_path / "losses.parquet").exists() == kept


@pytest.mark.slow
def test_two_ranks_finish_what_three_began(tmp_path, alone):
    slow = configured(tmp_path, pause=0.02)
    running, output = start(3, slow)
    deadline = time.monotonic() + 120
    while logged(slow).total() < ROWS // 2:
        assert running.are_running(), output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    running.kill()
    begun = logged(slow)
    config = configured(tmp_path)
    finish(start(2, config))
    for found in results(config, 2):
        same(found, alone)
    assert set(logged(config)) == set(range(ROWS))
    again = logged(config) - Counter(range(ROWS))
    assert set(again) <= set(begun)
    assert again.total() < begun.total()
    assert LossTable.load(config["output"], tokens=True).losses.tolist() == results(config, 2)[0][0]


@pytest.mark.slow
def test_ranks_share_what_a_job_of_an_array_has_bit_for_bit(tmp_path, alone):
    for number in range(2):
        config = configured(tmp_path, shard=[number, 2])
        finish(start(2, config))
        of_ranks = results(config, 2)
        assert of_ranks[0] == of_ranks[1]
        assert 0 < len(of_ranks[0][0]) < ROWS
    assert logged(config) == Counter(range(ROWS))
    table = LossTable.merge(config["output"])
    assert table.losses.tolist() == alone[0]
    assert table.token_losses.tolist() == alone[1]


def test_a_rank_that_is_gone_is_told_in_words(monkeypatch):
    def closed(*arguments, **options):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "new_group", lambda **options: "a group")
    ranks = Ranks()
    monkeypatch.setattr(dist, "all_gather_object", closed)
    monkeypatch.setattr(dist, "broadcast_object_list", closed)
    for meet in (lambda: ranks.gather(1), lambda: ranks.run_on_first(lambda: 1)):
        with pytest.raises(FlowDataError, match="another rank stopped; its message says why"):
            meet()


@pytest.mark.slow
def test_a_model_inside_ddp_is_scored_without_waiting_for_other_ranks(tmp_path, alone):
    config = configured(tmp_path, ddp=True)
    finish(start(2, config))
    for found in results(config, 2):
        same(found, alone)


@pytest.mark.slow
def test_what_rank_0_refuses_all_ranks_refuse(tmp_path, alone):
    config = configured(tmp_path)
    finish(start(1, config))
    assert logged(config) == Counter(range(ROWS))
    same(results(config, 1)[0], alone)
    message = finish(start(2, configured(tmp_path, seed=1)), code=1)
    assert message.count("MismatchError: the table") == 2
    assert "model_hash" in message


@pytest.mark.slow
def test_an_invalid_loss_on_one_rank_ends_the_pass_and_what_was_scored_is_kept(tmp_path, alone):
    # Row 80 is of rank 0, as is every other row.
    config = configured(tmp_path, silent=80, save_every=0.0)
    message = finish(start(2, config), code=1)
    assert "no response token to score in rows [80]" in message
    kept = rows_saved(config["output"])
    assert 80 not in kept
    assert kept & set(range(0, ROWS, 2))
    before = logged(config)
    finish(start(2, config | {"on_invalid": "drop"}))
    for losses, *_ in results(config, 2):
        assert [row for row, loss in enumerate(losses) if math.isnan(loss)] == [80]
        assert losses[:80] + losses[81:] == pytest.approx(alone[0][:80] + alone[0][81:], rel=1e-6)
    again = logged(config) - before
    assert not set(again) & kept
    assert set(again) | kept == set(range(ROWS))


@pytest.mark.slow
@pytest.mark.parametrize("kept", [False, True])
def test_ranks_share_the_rows_that_are_not_known(tmp_path, alone, kept):
    first = configured(tmp_path / "first", rows=60)
    finish(start(1, first))
    known = {"0": first["output"], "1": first["output"]}
    config = configured(tmp_path, known=known, **({} if kept else {"output": None}))
    finish(start(2, config))
    assert logged(config) == Counter(range(60, ROWS))
    for found in results(config, 2):
        same(found, alone)
    del known["1"]
    message = finish(start(2, configured(tmp_path / "other", known=known)), code=1)
    assert message.count("MismatchError: ranks were given different tables") == 2
