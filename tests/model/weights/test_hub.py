"""Weights by hf-hub:OWNER/NAME: from a hub on loopback, and every way in which that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, files_of, hub
from untrained_weights import own_weights, untrained

import facemetric as fm
from facemetric.errors import WeightsError
from facemetric.model.weights import hub as hub_module
from facemetric.model.weights.folder import find_weights, name_of_copy
from facemetric.model.weights.hub import parse_name

__all__ = ["hub", "own_weights", "untrained"]
NAME = "hf-hub:some/faces"


def test_weights_come_by_name_once(hub: FakeHub, untrained: Path) -> None:
    hub.add("some/faces", files_of(untrained) | {"pytorch_model.bin": b"a pickle", "README.md": b"# Faces"})
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    ours = fm.load_embedder(NAME).embed(pictures)
    np.testing.assert_array_equal(ours, fm.load_embedder(untrained).embed(pictures))
    brought = {path for method, path in hub.asked if "/resolve/" in path and method == "GET"}
    assert {path.rpartition("/")[2] for path in brought} == {"config.json", "model.safetensors"}
    asked = len(hub.asked)
    find_weights(NAME)
    find_weights(Path(NAME))
    assert len(hub.asked) == asked  # the name is asked for once in a process


def test_what_is_in_the_cache_is_not_brought_again(
    hub: FakeHub, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add("some/faces", files_of(untrained))
    first = find_weights(NAME)
    hub.asked.clear()
    monkeypatch.setattr(hub_module, "FOUND", {})
    assert find_weights(NAME) == first
    assert {method for method, path in hub.asked if "/resolve/" in path} <= {"HEAD"}
    monkeypatch.setattr(hub_module, "FOUND", {})
    config = json.loads((untrained / "config.json").read_text())
    config["facemetric"]["metrics"] = {"val_eer": 0.25}
    old = repo.head
    repo.commit({"config.json": json.dumps(config).encode()})
    assert find_weights(NAME) != first  # a new revision is
    assert find_weights(f"{NAME}@{old}") == first


def test_without_a_network_the_cache_answers_and_says_so(
    hub: FakeHub, untrained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("some/faces", files_of(untrained))
    first = find_weights(NAME)
    monkeypatch.setattr(hub_module, "FOUND", {})
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    assert find_weights(NAME) == first
    assert "note: the Hub cannot be reached" in capsys.readouterr().out
    with pytest.raises(
        WeightsError, match=r"hf-hub:some/other: the Hub cannot be reached \(.*\), and the cache has no"
    ):
        find_weights("hf-hub:some/other")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hf-hub:some/nobody",
            "the Hub has no model some/nobody, or it is private; mend the name, or log in",
        ),
        ("hf-hub:some/hidden", "the Hub has no model some/hidden, or it is private"),
        ("hf-hub:some/gated", "hf-hub:some/gated is gated: accept its terms at its page"),
        (f"{NAME}@v9", "hf-hub:some/faces has no revision 'v9'"),
        ("hf-hub:some/pickled", r"its weights as pytorch_model\.bin only, which can run code .*: refused"),
        (
            "hf-hub:some/text",
            r"holds no weights of facemetric: config\.json and model\.safetensors are not among",
        ),
        (
            "hf-hub:some/timm",
            r"holds no weights of facemetric: its config\.json is not a config of facemetric",
        ),
        ("hf-hub:faces", "names nothing on the Hub; needed is hf-hub:OWNER/NAME"),
        ("hf-hub:../../etc", "names nothing on the Hub"),
        ("hf-hub:a/b/c", "names nothing on the Hub"),
        ("hf-hub:a/b@", "names nothing on the Hub"),
        ("hf-hub:", "names nothing on the Hub"),
    ],
)
def test_what_the_hub_does_not_give(hub: FakeHub, untrained: Path, name: str, message: str) -> None:
    files = files_of(untrained)
    hub.add("some/faces", files)
    hub.add("some/hidden", files, private=True)
    hub.add("some/gated", files, gated=True)
    hub.add("some/pickled", {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."})
    hub.add("some/text", {"README.md": b"# A text", "data.csv": b"a,b"})
    hub.add("some/timm", {"config.json": b'{"architecture": "resnet18"}', "model.safetensors": b"x" * 99})
    with pytest.raises(WeightsError, match=message):
        find_weights(name)
    assert not [path for _, path in hub.asked if path.endswith((".bin", ".csv"))]
    if name.endswith("timm"):  # refused by its config: the large file was not asked for
        assert not [path for _, path in hub.asked if path.endswith(".safetensors")]


def test_a_wrong_token_is_told_from_a_wrong_name(
    hub: FakeHub, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("some/hidden", files_of(untrained), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(WeightsError, match="hf-hub:some/hidden: the Hub refuses the token"):
        find_weights("hf-hub:some/hidden")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fm.load_embedder("hf-hub:some/hidden").embedding_size > 0


def test_weights_that_changed_on_the_way_are_refused(hub: FakeHub, untrained: Path) -> None:
    files = files_of(untrained)
    hub.add("some/faces", files | {"model.safetensors": files["model.safetensors"][:-1] + b"!"})
    with pytest.raises(WeightsError, match=r"is not the file that config\.json describes"):
        fm.load_embedder(NAME)


def test_nothing_is_asked_but_for_such_a_name(hub: FakeHub, own_weights: Path) -> None:
    """Neither a shipped name nor a folder reaches for the network, and neither does the past of weights."""
    find_weights(own_weights)
    find_weights("faces-96")
    with pytest.raises(WeightsError, match="no weights at 'some/faces'"):
        find_weights("some/faces")
    with pytest.raises(WeightsError, match="not in the cache"):
        find_weights(NAME, fetch=False)
    assert hub.asked == []


def test_the_cache_is_not_written_to(hub: FakeHub, untrained: Path, faces: Path, tmp_path: Path) -> None:
    hub.add("some/faces", files_of(untrained))
    folder = find_weights(NAME)
    before = files_of(folder)
    assert name_of_copy(folder) == "faces"
    found = fm.calibrate(str(faces), weights=NAME, far=0.1, out=tmp_path / "out", workers=0, device="cpu")
    assert found.weights == tmp_path / "out" / "faces"
    assert files_of(folder) == before
    assert fm.Verifier(found.weights, far=0.1).threshold == found.thresholds[0].cosine


def test_parse_name() -> None:
    assert parse_name("hf-hub:Some-1/a.b_c") == ("Some-1/a.b_c", None)
    assert parse_name("hf-hub:a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    assert parse_name("a/b") == ("a/b", None)


def test_the_command_line_takes_the_name(
    hub: FakeHub, own_weights: Path, faces: Path, tmp_path: Path
) -> None:
    """In a process of its own, with huggingface_hub's own variables; the config is not heavy to find."""
    shutil.copy(own_weights / "config.json", tmp_path / "before.json")
    hub.add("some/faces", files_of(own_weights))
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    images = sorted(str(path) for path in faces.rglob("*") if path.is_file())[:2]

    def run(*words: str, **more: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "facemetric.cli", *words]
        done = subprocess.run(line, capture_output=True, text=True, env=env | more)
        return done.returncode, done.stdout + done.stderr

    status, text = run("verify", *images, "--weights", NAME)
    assert status == 2
    assert "no threshold" in text or "holds no threshold" in text, text
    status, text = run(
        "eval", "--weights", NAME, "--data", str(faces), "--out", str(tmp_path / "out"), "--no-report"
    )
    assert status == 0, text
    assert "kNN accuracy" in text
    gone: Any = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"}
    status, text = run("eval", "--weights", "hf-hub:some/other", "--data", str(faces), **gone)
    assert (status, text.count("\n")) == (2, 1), text
    assert text.startswith("facemetric: hf-hub:some/other: the Hub cannot be reached")
