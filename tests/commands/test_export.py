"""`facemetric export`: the file, its record, and what goes wrong."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from facemetric.commands import export
from facemetric.config import ExportConfig
from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.model.weights.folder import amend_config, read_config


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """torch traces each network of this file once: the same module, weights and size give a copy of the same graph."""
    trace, traced = torch.onnx.export, {}

    def once(model: nn.Module, example: tuple[torch.Tensor, ...], **options: Any) -> Any:
        numbers = [value.detach().numpy().tobytes() for value in (*model.parameters(), *model.buffers())]
        plain = [
            f"{name} {value}"
            for part in model.modules()
            for name, value in vars(part).items()
            if isinstance(value, bool | int | str | Preprocess)
        ]
        key = (repr(model), tuple(plain), example[0].shape, tuple(numbers))
        if key not in traced:
            traced[key] = trace(model, example, **options).model_proto.SerializeToString()
        return SimpleNamespace(model_proto=onnx.load_from_string(traced[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", once)
        yield


def test_a_file_its_record_and_its_accuracy(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path
) -> None:
    found = export.run_export(
        ExportConfig(
            str(untrained), out=tmp_path / "out", side=32, int8=True, data=(str(faces),), pairs=pairs
        )
    )
    plain, small = found.files
    assert plain.largest_difference < 1e-5
    assert plain.accuracy == pytest.approx(found.accuracy, abs=1e-4)
    assert small.megabytes < plain.megabytes
    assert small.accuracy is not None
    assert json.loads((tmp_path / "out" / "export.json").read_text())["files"][0]["file"] == "model.onnx"
    text = export.export_text(found)
    assert "model.onnx" in text
    assert "accuracy" in text.splitlines()[-1]


def test_odd_pairs_are_counted_once_and_said(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path
) -> None:
    """Accuracy is that of eval: no image beside itself, no pair twice."""
    header, *lines = pairs.read_text().splitlines()
    columns = header.split(",")
    one = dict(zip(columns, lines[0].split(","), strict=True))
    itself = ",".join(
        (
            one
            | {"image2_path": one["image1_path"], "path_b": one.get("path_a", ""), "label": "1", "same": "1"}
        )[c]
        for c in columns
    )
    odd = tmp_path / "odd.csv"
    odd.write_text("\n".join([header, *lines, *[itself] * 40, *lines[:3]]) + "\n")
    options = {"side": 32, "data": (str(faces),)}
    found, clean = (
        export.run_export(ExportConfig(str(untrained), out=tmp_path / file.stem, pairs=file, **options))
        for file in (odd, pairs)
    )
    assert found.accuracy == clean.accuracy
    assert clean.notes == ()
    assert found.notes[0] == "40 of 283 listed pairs hold an image with itself: left out"
    assert found.notes[1].startswith("3 of 283 listed pairs repeat one before")
    assert f"note: {found.notes[0]}" in export.export_text(found)
    assert json.loads((tmp_path / "odd" / "export.json").read_text())["notes"] == list(found.notes)


def test_the_file_claims_nothing_that_the_weights_do_not(untrained: Path, tmp_path: Path) -> None:
    found = export.run_export(ExportConfig(str(untrained), out=tmp_path / "out", side=32))
    metadata = export.OnnxEmbedder(found.folder / "model.onnx").metadata
    assert metadata["thresholds"] == {}
    assert metadata["crop"] == [32, 32]
    assert metadata["pictures"] == ""
    assert "template" not in metadata


def test_a_file_says_what_it_takes_and_only_thresholds_that_hold(own_weights: Path, tmp_path: Path) -> None:
    """Template and fingerprint of weights of faces; a threshold holds with the mirror image it was chosen with."""
    stored = {
        far: {"wanted_far": float(far), "threshold": 0.5, "flip": flip}
        for far, flip in (("0.1", True), ("0.01", False))
    }
    amend_config(own_weights, pictures="faces", thresholds=stored)
    for flip, far in ((False, "0.01"), (True, "0.1")):
        config = ExportConfig(str(own_weights), out=tmp_path / far, side=64, flip=flip)
        found = export.run_export(config)
        metadata = export.OnnxEmbedder(found.folder / "model.onnx").metadata
        assert list(metadata["thresholds"]) == [far]
        assert (metadata["pictures"], metadata["flip"]) == ("faces", flip)
        assert metadata["weights_sha256"] == read_config(own_weights)["sha256"]
        assert metadata["template"]["names"] == ["left_eye", "right_eye", "nose", "left_mouth", "right_mouth"]
        assert metadata["template"]["points"][0] == pytest.approx(
            [38.2946 * 64 / 112, 51.6963 * 64 / 112], abs=1e-3
        )
        had = "without" if flip else "with"
        assert (
            f"1 of 2 thresholds of the weights were chosen {had} the mirror image and do not hold"
            in found.notes[0]
        )
        assert found.notes[0] in export.export_text(found)


def test_without_data_drawn_faces_compare(untrained: Path, tmp_path: Path) -> None:
    found = export.run_export(ExportConfig(str(untrained), out=tmp_path / "out", side=32))
    assert (found.source, found.images) == ("drawn faces", export.PARITY_IMAGES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "made_by.json",
        "model.onnx",
    ]


def test_a_file_that_does_not_agree_is_an_error(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export.OnnxEmbedder, "embed", lambda self, crops: 0.5 * export.np.ones((len(crops), 256), "f")
    )
    monkeypatch.setattr(
        export, "torch_embed", lambda *_, **__: lambda crops: export.np.ones((len(crops), 256), "f")
    )
    with pytest.raises(ConfigError, match=r"model\.onnx differs from torch by 0\.5 .* do not use it"):
        export.run_export(ExportConfig(str(untrained), out=tmp_path / "out", side=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ""}, "no weights were given"),
        ({"side": 4}, "--side is 4; it must be at least 8"),
        ({"int8": True}, "--int8 needs crops"),
        ({"int8": True, "to": "openvino", "data": ("x",)}, "--int8 is for --to onnx, not openvino"),
        ({"pairs": Path("p.csv")}, "--pairs needs its images"),
    ],
)
def test_options_that_do_not_go_together(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export.run_export(ExportConfig(**{"weights": "faces-96"} | options))


def test_openvino_where_it_is_installed(untrained: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        with pytest.raises(ConfigError, match="the package openvino is missing; pip install openvino"):
            export.run_export(ExportConfig(str(untrained), to="openvino", out=tmp_path / "out", side=32))
        assert not (tmp_path / "out").exists()
        return
    found = export.run_export(ExportConfig(str(untrained), to="openvino", out=tmp_path / "out", side=32))
    assert found.files[0].largest_difference < 1e-4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "model.bin",
        "model.xml",
    ]
