"""The list of shipped weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from facemetric.cli import main
from facemetric.data.images import Preprocess
from facemetric.model import weights_folder as weights_folder
from facemetric.model.embedder import build_embedder
from facemetric.model.weights import save_weights


def run() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weights"])
    assert ended.value.code == 0


def test_the_list_says_what_the_cards_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights_folder, "SHIPPED", (tmp_path,))
    run()
    assert capsys.readouterr().out == "no weights came with this installation\n"
    embedder = build_embedder("lcnet_035", preprocess=Preprocess(size=(32, 32)), embedding_size=16)
    figures = {"lfw_accuracy": 0.91234, "images_per_second": 1234.5}
    save_weights(tmp_path / "measured", embedder, provenance={}, metrics=figures)
    save_weights(tmp_path / "bare", embedder, provenance={}, metrics={})
    run()
    head, bare, measured = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "MB", "architecture"]
    size = f"{(tmp_path / 'bare' / 'model.safetensors').stat().st_size / 1e6:.1f}"
    assert bare.split() == ["bare", size, "lcnet_035", "32", "16", "-", "-", "-"]
    assert measured.split() == ["measured", size, "lcnet_035", "32", "16", "91.23%", "-", "1,234"]
