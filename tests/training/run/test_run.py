"""The run folder: whose it is, and what stands in it."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import pytest

from facemetric.errors import ConfigError
from facemetric.model.weights.folder import provenance
from facemetric.training.run.run import Run


def test_a_line_is_on_disk_at_once_and_is_json(tmp_path: Path) -> None:
    run = Run(tmp_path, config_toml="epochs = 1\n", resume=False)
    run.log("train", 20, loss=1 / 3, accuracy=math.nan, epoch=2)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    run.close()
    assert len(lines) == 1
    line = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert line.pop("seconds") >= 0
    assert line == {"event": "train", "step": 20, "loss": 0.3333333, "accuracy": "nan", "epoch": 2}
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path, config_toml="seed = 1\n", resume=False)
    run.log("train", 1, loss=1.0)
    run.close()
    with pytest.raises(ConfigError, match="already holds a run; remove it, or name another --out"):
        Run(tmp_path, config_toml="seed = 2\n", resume=False)
    with pytest.raises(ConfigError, match="no checkpoint to resume; name another --out, or remove it"):
        Run(tmp_path, config_toml="seed = 2\n", resume=True)
    (tmp_path / "checkpoint.pt").write_bytes(b"a run")
    with pytest.raises(ConfigError, match="already holds a run; go on with it by --resume"):
        Run(tmp_path, config_toml="seed = 2\n", resume=False)
    assert (tmp_path / "config.toml").read_text() == "seed = 1\n"


def test_a_start_that_failed_leaves_no_run(tmp_path: Path) -> None:
    Run(tmp_path, config_toml="seed = 1\n", resume=False).close()
    (tmp_path / "bad_images.csv").write_text("name,reason\na/b.jpg,truncated\n")
    Run(tmp_path, config_toml="seed = 2\n", resume=False).close()
    assert (tmp_path / "config.toml").read_text() == "seed = 2\n"
    assert not (tmp_path / "bad_images.csv").exists()


def test_resume_without_a_run_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start without --resume"):
        Run(tmp_path / "run", config_toml="", resume=True)
    assert not (tmp_path / "run").exists()


def test_provenance_names_the_versions_and_the_options() -> None:
    found = provenance(data="abc", images=3, identities=2, options={"seed": 5, "arch": "lcnet_035"})
    assert found["seed"] == 5
    assert found["options"]["arch"] == "lcnet_035"
    assert {"python", "torch", "timm", "numpy"} <= found["versions"].keys()
    assert json.loads(json.dumps(found)) == found


def test_a_disk_that_is_full_keeps_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path / "run", config_toml="", resume=False)

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run._board is not None
    monkeypatch.setattr(run._board, "close", full)
    with pytest.raises(OSError, match="No space left"):
        run.close()
    Run(tmp_path / "run", config_toml="", resume=False).close()
