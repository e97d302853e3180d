import subprocess
import sys
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
