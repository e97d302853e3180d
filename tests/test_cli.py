import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import flowdata
from flowdata.cli import main

COMMAND = Path(sys.executable).with_name("flowdata")


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["--version"])
    assert leaving.value.code == 0
    assert capsys.readouterr().out == f"flowdata {flowdata.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["unknown"], ["demo", "--seeds", "0"]])
def test_wrong_usage_ends_with_status_2_and_says_what_is_wrong(arguments, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    assert "usage: flowdata" in capsys.readouterr().err


def test_help_explains_every_option_of_the_demo(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    assert "--seeds" in text
    assert "--output" in text
    assert "controls" in text


def test_a_directory_that_cannot_be_made_is_named_without_a_traceback(tmp_path, capsys):
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert main(["demo", "--seeds", "1", "--output", str(occupied)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("flowdata: ")
    assert str(occupied) in error


@pytest.mark.slow
def test_the_installed_command_runs_the_demo(tmp_path):
    finished = subprocess.run(
        [COMMAND, "demo", "--seeds", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert "FlowSampler" in finished.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["flowdata-demo"]
    assert (tmp_path / "flowdata-demo" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_index_writes_where_samples_lie_without_a_model(tmp_path, capsys):
    for shard in range(2):
        with tarfile.open(tmp_path / f"a-{shard}.tar", "w") as tar:
            for sample in range(3):
                member = tarfile.TarInfo(f"{sample}.txt")
                member.size = 4
                tar.addfile(member, io.BytesIO(b"text"))
    output = tmp_path / "index.parquet"
    assert main(["index", str(tmp_path / "a-{0..1}.tar"), "--output", str(output)]) == 0
    assert "6 samples in 2 shards" in capsys.readouterr().out
    index = flowdata.ShardIndex.load(output)
    assert [index.key(row) for row in range(6)] == ["0", "1", "2"] * 2
    assert index.lengths.tolist() == [(tmp_path / f"a-{n}.tar").stat().st_size for n in range(2)]
    table = flowdata.LossTable.from_losses([1, 2, 3, 4, 5, 6], index=index)
    table.save(tmp_path / "table.parquet")
    again = flowdata.ShardIndex.load(tmp_path / "table.parquet")
    assert again.offsets.tolist() == index.offsets.tolist()
    assert main(["index", "pipe:true", "--output", str(output)]) == 1
    assert "allow_pipe=True" in capsys.readouterr().err
    assert main(["index", str(tmp_path / "none.tar"), "--output", str(output)]) == 1
    assert "none.tar" in capsys.readouterr().err
