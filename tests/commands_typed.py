"""Commands as a user types them, run in this process: what they print, and how they end."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from facemetric import cli

TUNE = ["--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu"]
FAST = ["--arch", "test_resnet", "--image-size", "32", *TUNE]


class Ran(NamedTuple):
    """What a command left behind."""

    status: Any
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line that a failed command ends with; fails where there is more or less than that."""
        assert self.status == 2
        assert "Traceback" not in self.err
        pieces = re.split(r"[\r\n]|\x1b\[A", self.err)
        lines = [piece for piece in pieces if piece.strip() and "%|" not in piece]  # no progress bars
        assert len(lines) == 1, lines
        assert lines[0].startswith("facemetric: ")
        assert self.err.endswith("\n")
        return lines[0]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*tokens: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(token) for token in tokens])
        return Ran(caught.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def weights(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a stage one."""
    from facemetric import pretrain

    out = tmp_path_factory.mktemp("cli") / "run"
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "workers": 0, "device": "cpu"}
    pretrain(str(faces), arch="test_resnet", image_size=32, out=out, **options)
    return out


@pytest.fixture
def people(faces: Path, tmp_path: Path) -> Path:
    """Eight of the drawn identities, to be damaged at will."""
    for folder in sorted(faces.iterdir())[:8]:
        shutil.copytree(folder, tmp_path / "people" / folder.name)
    return tmp_path / "people"


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
