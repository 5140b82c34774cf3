"""An exported file sees the very pixels that ours see, and answers as torch does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from facemetric.data.images import INTERPOLATIONS, Preprocess, normalise
from facemetric.data.transforms import eval_transform
from facemetric.errors import ConfigError
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.model.onnx.export import (
    OnnxEmbedder,
    Resample,
    export_onnx,
    quantize_onnx,
    resampling_weights,
)

CUT = Preprocess(size=(32, 40), crop=(0.12, 0.175, 0.1, 0.05), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def noise(count: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def pixels_of(pre: Preprocess, crops: np.ndarray) -> torch.Tensor:
    transform = eval_transform(pre)
    return torch.from_numpy(np.stack([transform(Image.fromarray(crop)) for crop in crops]))


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    return build_embedder("test_resnet", preprocess=CUT, embedding_size=16).eval()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@given(
    out=st.integers(5, 60),
    crop=st.tuples(*[st.floats(0, 0.4)] * 4),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_pixels_are_pillows_to_the_bit(interpolation, out, crop, seed) -> None:
    pre = Preprocess(size=(out, out + 3), crop=crop, interpolation=interpolation)
    crops = noise(2, 40, seed)
    ours = Resample(pre, 40)(torch.from_numpy(crops)).permute(0, 2, 3, 1)
    assert torch.equal(ours, pixels_of(pre, crops).float())


def test_weights_of_a_line_are_those_that_pillow_applies() -> None:
    line = np.zeros((1, 30), np.float32)
    line[0, 11] = 1
    image = Image.fromarray(line, "F").resize((17, 1), INTERPOLATIONS["bilinear"], box=(2, 0, 27, 1))
    weights = resampling_weights(30, 17, 2, 27, "bilinear")
    np.testing.assert_allclose(weights[:, 11], np.asarray(image)[0], atol=2**-22)


@pytest.mark.parametrize("flip", [False, True])
def test_the_file_answers_as_torch_for_any_batch(embedder: Embedder, tmp_path: Path, flip: bool) -> None:
    file = export_onnx(tmp_path / "m.onnx", embedder, side=48, flip=flip, metadata={"name": "tests"})
    exported = OnnxEmbedder(file)
    assert exported.side == 48
    assert exported.metadata == {"name": "tests"}
    crops = noise(7, 48)
    with torch.inference_mode():
        seen = normalise(pixels_of(CUT, crops), CUT, "cpu")
        ours = embedder(seen)
        if flip:
            ours = functional.normalize(ours + embedder(seen.flip(3)), dim=1)
    for count in (1, 2, 7):
        np.testing.assert_allclose(exported.embed(crops[:count]), ours[:count].numpy(), atol=2e-6)
    np.testing.assert_allclose(exported.embed(crops, batch_size=3), ours.numpy(), atol=2e-6)
    opened = onnx.load(file)
    assert opened.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8


def test_colours_may_be_the_other_way_round(tmp_path: Path) -> None:
    torch.manual_seed(1)
    bgr = Preprocess(size=(32, 32), color="bgr", mean=(0.1, 0.5, 0.9))
    embedder = build_embedder("test_resnet", preprocess=bgr).eval()
    crops = noise(3, 32)
    with torch.inference_mode():
        ours = embedder(normalise(pixels_of(bgr, crops), bgr, "cpu")).numpy()
    theirs = OnnxEmbedder(export_onnx(tmp_path / "m.onnx", embedder, side=32)).embed(crops)
    np.testing.assert_allclose(theirs, ours, atol=2e-6)


def test_int8_is_smaller_and_near(embedder: Embedder, tmp_path: Path) -> None:
    file = export_onnx(tmp_path / "m.onnx", embedder, side=48)
    crops = noise(32, 48)
    small = quantize_onnx(file, tmp_path / "m8.onnx", [crops[:16], crops[16:]])
    assert small.stat().st_size < 0.6 * file.stat().st_size
    cosine = (OnnxEmbedder(small).embed(crops) * OnnxEmbedder(file).embed(crops)).sum(1)
    assert cosine.min() > 0.95
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m8.onnx"]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="interpolation nearest cannot be exported; needed is one of bilinear"
    ):
        resampling_weights(4, 2, 0, 4, "nearest")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ConfigError, match=r"text\.onnx is no ONNX model that can be run"):
        OnnxEmbedder(tmp_path / "text.onnx")
    with pytest.raises(ConfigError, match=r"gone\.onnx is no ONNX model that can be run"):
        OnnxEmbedder(tmp_path / "gone.onnx")


def test_a_model_that_takes_other_input_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "floats.onnx"
    program = torch.onnx.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),), dynamo=True, verbose=False)
    program.save(str(file))
    with pytest.raises(ConfigError, match=r"needed is one input of pictures, \(batch, height, width, 3\)"):
        OnnxEmbedder(file)
