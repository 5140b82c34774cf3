"""Weights folders: what is written is what is read, plain timm opens them, and damage is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

from facemetric.data.images import Preprocess
from facemetric.errors import WeightsError
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.model.weights import folder as weights_folder
from facemetric.model.weights.folder import find_weights, mend_folder, shipped_weights
from facemetric.model.weights.save_load import load_embedder, save_weights

PRE = Preprocess(size=(32, 32), crop=(0.1, 0.2, 0.1, 0.0))


@pytest.fixture
def embedder() -> Embedder:
    torch.manual_seed(0)
    embedder = build_embedder("lcnet_035", preprocess=PRE, embedding_size=16, neck=True)
    embedder(torch.randn(8, 3, 32, 32))
    return embedder.eval()


@pytest.fixture
def folder(embedder: Embedder, tmp_path: Path) -> Path:
    save_weights(tmp_path / "w", embedder, provenance={"seed": 3}, metrics={"val_eer": 0.1})
    return tmp_path / "w"


def test_round_trip(embedder: Embedder, folder: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    loaded = load_embedder(folder)
    torch.testing.assert_close(loaded(images), embedder(images))
    assert loaded.preprocess == PRE
    config = json.loads((folder / "config.json").read_text())
    assert config["facemetric"]["provenance"] == {"seed": 3}
    assert config["facemetric"]["metrics"] == {"val_eer": 0.1}


@pytest.mark.parametrize(
    "arch",
    ["lcnet_035", "resnet10t", "convnext_atto", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"],
)
@pytest.mark.parametrize("size", [0, 8])
def test_plain_timm_opens_the_backbone(arch: str, size: int, tmp_path: Path) -> None:
    embedder = build_embedder(arch, preprocess=Preprocess(size=(32, 32)), embedding_size=size).eval()
    save_weights(tmp_path / "w", embedder, provenance={}, metrics={})
    images = torch.randn(2, 3, 32, 32)
    loaded = load_embedder(tmp_path / "w")
    torch.testing.assert_close(loaded(images), embedder(images))
    if arch.startswith("deit") and size:
        return  # two classifiers: the projection has a key that timm does not know
    backbone = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, num_classes=0).eval()
    torch.testing.assert_close(backbone(images), embedder.features(images))
    if size:
        whole = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
        torch.testing.assert_close(functional.normalize(whole(images), dim=1), embedder(images))


def test_arguments_of_the_architecture_come_back(tmp_path: Path) -> None:
    args = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
    pre = Preprocess(size=(32, 32))
    embedder = build_embedder("resnet18", preprocess=pre, arch_args=args, embedding_size=8).eval()
    save_weights(tmp_path / "w", embedder, provenance={}, metrics={})
    images = torch.randn(2, 3, 32, 32)
    loaded = load_embedder(tmp_path / "w")
    assert loaded.model_args == args
    torch.testing.assert_close(loaded(images), embedder(images))
    whole = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    torch.testing.assert_close(functional.normalize(whole(images), dim=1), embedder(images))
    # Weights of others cannot make timm read files.
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    config["model_args"]["checkpoint_path"] = "/etc/passwd"
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="checkpoint_path is no argument of the architecture"):
        load_embedder(tmp_path / "w")


def test_a_run_folder_stands_for_its_best_weights(folder: Path) -> None:
    folder.rename(folder.with_name("best"))
    assert find_weights(folder.parent) == folder.parent / "best"


def test_half_the_size(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    save_weights(tmp_path / "half", embedder, provenance={}, metrics={}, half=True)
    sizes = [(each / "model.safetensors").stat().st_size for each in (folder, tmp_path / "half")]
    assert sizes[1] < 0.55 * sizes[0]
    images = torch.randn(4, 3, 32, 32)
    loaded = load_embedder(tmp_path / "half")
    assert all(value.dtype == torch.float32 for value in loaded.parameters())
    assert functional.cosine_similarity(loaded(images), embedder(images)).min() > 0.9999
    plain = timm.create_model(f"local-dir:{tmp_path / 'half'}", pretrained=True).eval()
    torch.testing.assert_close(functional.normalize(plain(images), dim=1), loaded(images))


def test_shipped_weights_are_found_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = (tmp_path / "checkout", tmp_path / "wheel")
    monkeypatch.setattr(weights_folder, "SHIPPED", roots)
    for root, name in ((roots[0], "faces-b"), (roots[1], "faces-a"), (roots[1], "faces-b")):
        shutil.copytree(folder, root / name)
    assert shipped_weights() == [roots[1] / "faces-a", roots[0] / "faces-b"]  # a checkout goes first
    assert find_weights("faces-a") == roots[1] / "faces-a"
    with pytest.raises(WeightsError, match="did you mean 'faces-b'"):
        find_weights("face-b")


def test_weights_cut_short(folder: Path) -> None:
    model = folder / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut short or changed"):
        load_embedder(folder)


def test_a_damaged_header_without_a_hash(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_embedder(folder)


def test_weights_of_another_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["architecture"] = "resnet10t"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="does not hold resnet10t"):
        load_embedder(folder)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"architecture": "lcnet_035", "facemetric": {"format": 99}}']
)
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_embedder(folder)


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="copy the whole folder"):
        load_embedder(folder)
    with pytest.raises(WeightsError, match="no weights at"):
        load_embedder(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="no weights were given"):
        load_embedder("")


def test_the_second_save_replaces_the_first(embedder: Embedder, folder: Path) -> None:
    with torch.no_grad():
        embedder.projection.weight.add_(1.0)
    save_weights(folder, embedder, provenance={}, metrics={})
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(load_embedder(folder)(images), embedder(images))
    assert sorted(path.name for path in folder.parent.iterdir()) == ["w"]


def test_a_replacement_cut_off_half_way_is_undone(tmp_path: Path) -> None:
    (tmp_path / "best.old").mkdir()
    (tmp_path / "best.old" / "config.json").write_text("{}")
    mend_folder(tmp_path / "best")
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    (tmp_path / "best.old").mkdir()  # the new one was in its place, the old one not yet removed
    mend_folder(tmp_path / "best")
    assert (tmp_path / "best" / "config.json").exists()


def test_what_pictures_the_weights_expect_is_kept(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    assert "pictures" not in json.loads((folder / "config.json").read_text())["facemetric"]
    assert load_embedder(folder).pictures == ""
    embedder.pictures = "faces"
    save_weights(tmp_path / "f", embedder, provenance={}, metrics={})
    path = tmp_path / "f" / "config.json"
    config = json.loads(path.read_text())
    assert config["facemetric"]["pictures"] == load_embedder(tmp_path / "f").pictures == "faces"
    config["facemetric"]["pictures"] = "maps"
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"expect 'maps'; this version knows 'faces' alone"):
        load_embedder(tmp_path / "f")


def test_a_gallery_that_is_named_as_weights_is_told(tmp_path: Path) -> None:
    (tmp_path / "gallery.json").write_text("{}")
    with pytest.raises(
        WeightsError, match="is a gallery, not weights; name the weights that it was made with"
    ):
        find_weights(tmp_path)
