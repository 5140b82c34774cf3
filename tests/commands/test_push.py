"""`facemetric push`: what is sent, what is never overwritten, and what goes wrong; to a hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import TOKEN, FakeHub, files_of, hub

import facemetric as fm
from facemetric.errors import ConfigError, WeightsError
from facemetric.model.weights.card import card, without_paths
from facemetric.model.weights.folder import amend_config, find_weights, read_config

__all__ = ["hub"]
SENT = ("config.json", "model.safetensors", "README.md")


@pytest.fixture
def weights(own_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights whose config.json names folders of this machine, and somebody who is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options = {"data": ["fiw=/home/me/secret/fiw.tar"], "weights": "/home/me/runs/one", "epochs": 3}
    amend_config(own_weights, provenance={"images": 96, "identities": 16, "seed": 0, "options": options})
    return own_weights


def test_what_is_sent_comes_back_the_same(
    hub: FakeHub, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fm.push(weights, "me/faces", private=True)
    assert (found.repo, found.files, found.private) == ("me/faces", SENT, True)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "to hf-hub:me/faces (to be made, private):"
    assert [line.split()[0] for line in shown[1:4]] == list(SENT)
    assert all(line.endswith("new") for line in shown[1:4])
    assert found.text() == f"sent to {hub.address}/me/faces (private); use it as --weights hf-hub:me/faces"
    repo = hub.repos["me/faces"]
    assert repo.private
    assert set(repo.commits[found.commit]) == {*SENT, ".gitattributes"}
    assert b"/home/me" not in b"".join(repo.commits[found.commit].values())
    pictures = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    back = fm.load_embedder("hf-hub:me/faces").embed(pictures)
    np.testing.assert_array_equal(back, fm.load_embedder(weights).embed(pictures))
    kept = read_config(find_weights("hf-hub:me/faces"))["facemetric"]["provenance"]["options"]
    assert kept == {"data": ["fiw=fiw.tar"], "weights": "one", "epochs": 3}


def test_the_same_again_sends_nothing_and_others_are_not_overwritten(
    hub: FakeHub, weights: Path, stage: Path
) -> None:
    first = fm.push(weights, "me/faces")
    again = fm.push(weights, "hf-hub:me/faces")
    assert (again.files, again.commit, again.text()) == ((), "", "nothing was sent")
    assert hub.repos["me/faces"].head == first.commit
    with pytest.raises(
        ConfigError, match=r"holds other files of these names: config\.json, model\.safetensors, README"
    ):
        fm.push(stage, "me/faces")
    assert hub.repos["me/faces"].head == first.commit
    replaced = fm.push(stage, "me/faces", replace=True)
    assert hub.repos["me/faces"].head == replaced.commit != first.commit
    amend_config(stage, metrics={"val_eer": 0.125})
    part = fm.push(stage, "me/faces", replace=True)
    assert part.files == ("config.json", "README.md")
    assert "model.safetensors" in hub.repos["me/faces"].commits[part.commit]


@pytest.fixture
def stage(untrained: Path, tmp_path: Path) -> Path:
    """Other weights, of another size."""
    import torch

    from facemetric.data.images import Preprocess
    from facemetric.model.embedder import build_embedder
    from facemetric.model.weights.save_load import save_weights

    torch.manual_seed(1)
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)), embedding_size=8)
    save_weights(tmp_path / "other", embedder, provenance={}, metrics={})
    return tmp_path / "other"


def test_a_dry_run_shows_and_asks_nothing(
    hub: FakeHub, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    found = fm.push(weights, "me/faces", dry_run=True)
    assert (found.files, found.commit) == (SENT, "")
    assert "to hf-hub:me/faces (to be made, public: everybody can read it):" in capsys.readouterr().out
    assert hub.asked == []


def test_somebody_else_was_quicker(hub: FakeHub, weights: Path, stage: Path) -> None:
    fm.push(weights, "me/faces")
    repo = hub.repos["me/faces"]
    hub.before_commit = lambda: repo.commit({"README.md": b"theirs"})
    with pytest.raises(WeightsError, match="me/faces was changed or made by somebody else in the meantime"):
        fm.push(stage, "me/faces", replace=True)
    assert repo.commits[repo.head]["README.md"] == b"theirs"


@pytest.mark.parametrize(
    ("token", "repo", "options", "message"),
    [
        ("", "me/faces", {}, "no token of the Hub was found; log in"),
        ("hf_wrong", "me/faces", {}, "hf-hub:me/faces: the Hub refuses the token"),
        (
            TOKEN,
            "you/faces",
            {},
            "hf-hub:you/faces: the token may not do this; make one that may write to you/faces",
        ),
        (TOKEN, "me/open", {"private": True}, "me/open is public, and private=True was given"),
        (TOKEN, "faces", {}, "'faces' is no name on the Hub; needed is OWNER/NAME"),
        (TOKEN, "me/faces@v1", {}, "names a revision; weights are sent to the main one: leave out @v1"),
        (TOKEN, "", {}, "push needs weights and a name: `facemetric push WEIGHTS OWNER/NAME`"),
    ],
)
def test_what_cannot_be_sent(
    hub: FakeHub,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo: str,
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub.add("me/open", {".gitattributes": b""})
    with pytest.raises((ConfigError, WeightsError), match=message):
        fm.push(weights, repo, **options)
    assert set(hub.repos) == {"me/open"}


def test_without_a_network(hub: FakeHub, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsError, match="hf-hub:me/faces: the Hub cannot be reached"):
        fm.push(weights, "me/faces")


def test_a_damaged_folder_is_not_sent(hub: FakeHub, weights: Path) -> None:
    (weights / "model.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match=r"is not the file that config\.json describes"):
        fm.push(weights, "me/faces")
    assert hub.asked == []


def test_a_card_of_ones_own_goes_along(hub: FakeHub, weights: Path) -> None:
    (weights / "README.md").write_text("# Mine\n")
    found = fm.push(weights, "me/faces")
    text = hub.repos["me/faces"].commits[found.commit]["README.md"].decode()
    assert text.startswith("---\nlibrary_name: facemetric\n")
    assert text.endswith("---\n\n# Mine\n")
    (weights / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    found = fm.push(weights, "me/faces", replace=True)
    assert hub.repos["me/faces"].commits[found.commit]["README.md"].startswith(b"---\nlicense: mit")


def test_the_card_has_every_figure_with_its_interval() -> None:
    """That of the shipped weights, whose config.json holds all kinds."""
    config = read_config(find_weights("faces-112"))
    ours = config["facemetric"]
    text = card(config, "me/faces")
    metrics = ours["metrics"]
    low, high = metrics["lfw_tar_at_far_0.001_95"]
    value = metrics["lfw_tar_at_far_0.001"]
    assert f"| LFW | TAR at FAR = 0.001 | {value:.4f} | [{low:.4f}, {high:.4f}] |" in text
    assert f"| validation identities | EER | {metrics['val_eer']:.4f} | not computed |" in text
    assert "images_per_second" not in text
    for one in ours["thresholds"].values():
        low, high = one["threshold_interval_95"]
        assert f"{one['threshold']:.4f} [{low:.4f}, {high:.4f}]" in text
    assert (
        f"{ours['provenance']['images']:,} images of {ours['provenance']['identities']:,} identities" in text
    )
    assert "What has no figure above was not measured" in text
    assert "timm.create_model" not in text  # plain timm would leave out the crop


def test_the_card_claims_nothing_that_is_not_there(untrained: Path) -> None:
    text = card(read_config(untrained), "me/nothing")
    assert "None were measured." in text
    assert "None are stored" in text
    assert "What they were trained on is not recorded." in text
    assert "verify" not in text
    assert 'timm.create_model("hf-hub:me/nothing", pretrained=True)' in text


def test_paths_are_taken_out_of_texts() -> None:
    assert (
        without_paths("identities of /home/me/val.txt in data, 3/4 of it")
        == "identities of val.txt in data, 3/4 of it"
    )
    assert without_paths("see https://example.org/a/b") == "see https://example.org/a/b"


def test_the_weights_that_go_out_are_what_timm_opens(hub: FakeHub, weights: Path) -> None:
    """A pushed folder opens with plain timm, from the folder that came back."""
    import timm

    fm.push(weights, "me/faces")
    folder = find_weights("hf-hub:me/faces")
    assert set(files_of(folder)) == {"config.json", "model.safetensors"}
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert json.loads((folder / "config.json").read_text())["architecture"] == "test_resnet"
