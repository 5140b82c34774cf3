"""`tools/check_gpu.sh` with a python that does nothing: steps that fail, and those that are asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_gpu.sh"
PYTHON = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    *bench_losses*) [ -e "$CALLS.mended" ] || { echo "no | memory"; exit 3; } ;;
esac
echo said
"""


class Checked:
    """The script, and what it leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(PYTHON)
        (folder / "bin" / "python").chmod(0o755)

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", SCRIPT, self.folder / "out", *words],
            env=os.environ | {"PATH": path, "CALLS": str(self.calls)},
            capture_output=True,
            text=True,
        )

    def rows(self) -> dict[str, str]:
        """The result of each step in table.md."""
        table = (self.folder / "out" / "table.md").read_text().split("\n\n")[0].splitlines()[2:]
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
        assert {len(each) for each in cells} == {4}
        return {each[0]: each[1] for each in cells}


@pytest.fixture
def check(tmp_path: Path) -> Checked:
    return Checked(tmp_path)


def test_a_step_that_fails_is_a_line_and_the_same_command_goes_on(check: Checked) -> None:
    ran = check("--device", "cpu")
    assert ran.returncode == 1
    rows = check.rows()
    assert rows.pop("losses") == "FAILED (3)"
    assert set(rows.values()) == {"ok"}
    assert {"packages", "training", "mining-hard-32-4", "head-sampled", "tests-interpreted"} <= set(rows)
    assert "no / memory" in (check.folder / "out" / "table.md").read_text()
    (check.folder / "calls.mended").touch()
    ran = check("--device", "cpu")
    assert ran.returncode == 0
    assert set(check.rows().values()) == {"ok"}
    called = check.calls.read_text()
    assert "bench_losses" in called  # what was ok is not run again, but for the look at what is installed
    assert "cyclopts" in called
    assert "bench_mining" not in called


def test_some_steps_alone(check: Checked) -> None:
    assert check("--device", "cpu", "--only", "head,all-pairs").returncode == 0
    assert set(check.rows()) == {"head-copied", "head-sampled", "all-pairs"}
    ran = check("--device", "cpu", "--only", "headless")
    assert ran.returncode == 2
    assert "no step begins with headless; see --list" in ran.stderr


def test_the_list_runs_nothing(check: Checked) -> None:
    ran = check("--list")
    names, seconds = zip(*(line.split()[:2] for line in ran.stdout.splitlines()), strict=True)
    assert {"tests-compiled", "mining-semihard-128-4", "loader-varied-on-device"} <= set(names)
    assert len(set(names)) == len(names)
    assert max(map(int, seconds)) <= 540
    assert not (check.folder / "out").exists()


@pytest.mark.parametrize("words", [["--bogus"], ["--only"], ["--device", "gpu"], ["--minutes", "soon"]])
def test_slips_are_told(check: Checked, words: list[str]) -> None:
    ran = check(*words)
    assert ran.returncode == 2
    assert ran.stderr.startswith("check_gpu.sh: ")
    assert ran.stderr.count("\n") == 1
