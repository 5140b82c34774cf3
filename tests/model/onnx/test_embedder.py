"""An ONNX file embeds as weights do: ours by its metadata, another by the file beside it or a guess; refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.model.onnx.embedder import OnnxEmbedder
from facemetric.model.weights.folder import find_weights

SIDE = 8


def model(
    file: Path,
    *,
    shape: list[Any] | None = None,
    kind: int = TensorProto.FLOAT,
    outputs: tuple[str, ...] = ("vector",),
    metadata: str = "",
) -> Path:
    """A file that takes pictures (B, 3, SIDE, SIDE) and gives all their numbers as one vector, as it sees them;
    `double` twice; the output `scores` has one number a picture."""
    shape = shape if shape is not None else ["batch", 3, SIDE, SIDE]
    nodes = [
        helper.make_node("Cast", ["pictures"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["vector"], axis=1),
        helper.make_node("Concat", ["vector", "vector"], ["double"], axis=1),
        helper.make_node("ReduceMax", ["numbers", "axes"], ["scores"], keepdims=0),
        helper.make_node("Unsqueeze", ["scores", "last"], ["column"]),
    ]
    axes = numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    last = numpy_helper.from_array(np.array([1]), "last")
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("pictures", kind, shape)], found, [axes, last]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if metadata:
        entry = proto.metadata_props.add()
        entry.key, entry.value = "facemetric", metadata
    onnx.save(proto, file)
    return file


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, SIDE, SIDE, 3)).astype(np.uint8)


def unit(rows: np.ndarray) -> np.ndarray:
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def test_a_file_without_a_word_is_guessed_and_said(tmp_path: Path) -> None:
    embedder = OnnxEmbedder(model(tmp_path / "theirs.onnx"))
    assert embedder.preprocess.size == (SIDE, SIDE)
    assert embedder.embedding_size == 3 * SIDE * SIDE
    assert embedder.pictures == "faces"
    (note,) = embedder.notes
    assert "guessed that it takes colours in the order red, green, blue, pixels of 0..1 less 0.5" in note
    assert "theirs.toml beside it may say otherwise" in note
    crops = pictures()
    wanted = unit((crops / 255 - 0.5) / 0.5).reshape(3, SIDE, SIDE, 3).transpose(0, 3, 1, 2).reshape(3, -1)
    np.testing.assert_allclose(embedder.embed(crops), wanted, atol=1e-6)
    np.testing.assert_allclose(embedder.embed(Image.fromarray(crops[1])), wanted[1:2], atol=1e-6)


def test_the_file_beside_says_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "theirs.toml").write_text(
        'color = "bgr"\nmean = [0.1, 0.2, 0.3]\nstd = [0.5, 0.25, 1.0]\nsize = [8, 8]\npictures = ""\n'
    )
    embedder = OnnxEmbedder(model(tmp_path / "theirs.onnx"))
    assert embedder.notes == ()
    assert embedder.pictures == ""
    crops = pictures()
    seen = (crops[..., ::-1] / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.25, 1.0]
    np.testing.assert_allclose(embedder.embed(crops), unit(seen.transpose(0, 3, 1, 2)), atol=1e-6)
    mirrored = unit(seen.transpose(0, 3, 1, 2)) + unit(seen[:, :, ::-1].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(embedder.embed(crops, flip=True), unit(mirrored), atol=1e-6)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_a_fixed_batch_is_filled(tmp_path: Path, batch: Any) -> None:
    file = model(tmp_path / "m.onnx", shape=[batch, SIDE, SIDE, 3], kind=TensorProto.UINT8)
    crops = pictures(10)
    np.testing.assert_allclose(OnnxEmbedder(file).embed(crops), unit(crops), atol=1e-6)


def test_the_vector_is_found_among_the_outputs(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", outputs=("scores", "column", "vector"))
    assert OnnxEmbedder(file).output == "vector"


def test_several_vectors_are_said_and_one_is_named(tmp_path: Path) -> None:
    """A network of faces and ages gives a vector for both; the first that fits is a guess."""
    file = model(tmp_path / "m.onnx", outputs=("scores", "double", "vector"))
    embedder = OnnxEmbedder(file)
    assert embedder.output == "double"
    (note,) = embedder.notes
    assert (
        "and that it gives the embedding as 'double' of 384 numbers (not as 'vector' of 192); m.toml beside"
        in note
    )
    (tmp_path / "m.toml").write_text('output = "vector"\ncolor = "rgb"\nmean = [0, 0, 0]\nstd = [1, 1, 1]')
    embedder = OnnxEmbedder(file)
    assert (embedder.output, embedder.embedding_size, embedder.notes) == ("vector", 192, ())
    (tmp_path / "m.toml").write_text('output = "scores"')
    with pytest.raises(
        ConfigError,
        match=r"m.toml: output is 'scores', but the vectors .* are 'double' of 384, 'vector' of 192",
    ):
        OnnxEmbedder(file)


def test_pixels_of_another_range_and_wrong_colours_are_suspected(tmp_path: Path) -> None:
    """A file that wants 0..255 less much gives one vector for all where pixels come as they were guessed."""
    file = model(tmp_path / "m.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3)).astype(np.uint8)
    assert OnnxEmbedder(file).suspicions(crops) == ()
    (tmp_path / "m.toml").write_text("mean = [-9.0, -9.0, -9.0]")
    (text,) = OnnxEmbedder(file).suspicions(crops)
    assert "it hardly tells pictures apart, the cosine of two of 40 is 0.99" in text
    assert text.endswith("write mean and std into m.toml beside it, as its author says")
    # The mirror image has the same red, and is like no other by its blue.
    crops[..., 1:] = 0
    crops[..., 0] = np.linspace(0, 255, 40).astype(np.uint8)[:, None, None]
    crops[:, :, : SIDE // 2, 2] = crops[::-1, :, : SIDE // 2, 0]
    (tmp_path / "m.toml").write_text("std = [1000.0, 1.0, 0.1]")
    (text,) = OnnxEmbedder(file).suspicions(crops)
    assert "its colours may be the wrong way round" in text
    assert text.endswith('write color = "bgr" into m.toml beside it, if its author says so')
    ours = model(
        tmp_path / "o.onnx", metadata=json.dumps({"preprocess": {"mean": [-9.0] * 3, "size": [SIDE, SIDE]}})
    )
    assert OnnxEmbedder(ours).suspicions(crops) == ()


def test_the_fingerprint_changes_with_what_is_said_beside(tmp_path: Path) -> None:
    """Vectors made with other colours are others: a table is not gone on with, a threshold not used."""
    file = model(tmp_path / "m.onnx", outputs=("double", "vector"))
    guessed = OnnxEmbedder(file).fingerprint
    found = {guessed}
    for text in ('color = "bgr"', 'output = "vector"', "mean = [0, 0, 0]", "crop = [0.1, 0, 0, 0]"):
        (tmp_path / "m.toml").write_text(text)
        found.add(OnnxEmbedder(file).fingerprint)
    assert len(found) == 5
    (tmp_path / "m.toml").write_text('color = "rgb"')  # what was guessed
    assert OnnxEmbedder(file).fingerprint == guessed
    other = model(tmp_path / "n.onnx", outputs=("vector",))
    assert OnnxEmbedder(other).fingerprint != guessed


def test_an_open_size_comes_from_the_file_beside(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", shape=["batch", 3, "height", "width"])
    assert OnnxEmbedder(file).preprocess.size == (112, 112)
    assert "guessed that it takes 112 x 112 pixels" in OnnxEmbedder(file).notes[0]
    (tmp_path / "m.toml").write_text("size = [20, 24]")
    assert OnnxEmbedder(file).preprocess.size == (20, 24)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size = [9, 9]", r"m.toml: size is \[9, 9\], but .* takes \[8, 8\]"),
        ('colour = "bgr"', r"m.toml: unknown key 'colour': did you mean 'color'"),
        ('color = "rbg"', r"unknown color 'rbg'"),
        ("std = 0.5", r"std is 0.5; it needs 3 numbers"),
        ('pictures = "cats"', r"m.toml: pictures is 'cats'"),
        ("size = ", r"m.toml is not TOML"),
    ],
)
def test_a_wrong_word_beside_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        OnnxEmbedder(model(tmp_path / "m.onnx"))


def test_models_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", shape=["batch", 1, SIDE, SIDE])
    with pytest.raises(
        ConfigError, match=r"needed is one input of pictures, .* no model that embeds pictures"
    ):
        OnnxEmbedder(file)
    file = model(tmp_path / "n.onnx", outputs=("scores", "column"))
    with pytest.raises(
        ConfigError, match=r"gives scores \[2\], column \[2, 1\] for 2 pictures; needed is one vector"
    ):
        OnnxEmbedder(file)
    file = model(tmp_path / "o.onnx", metadata="[1]")
    with pytest.raises(
        ConfigError, match=r"its metadata 'facemetric' is '\[1\]', which no export of ours wrote"
    ):
        OnnxEmbedder(file)
    with pytest.raises(
        WeightsError, match=r"m.onnx is an ONNX file, which eval, embed, verify, gallery and identify"
    ):
        find_weights(tmp_path / "m.onnx")


def test_a_vector_of_nothing_is_refused(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx", shape=["batch", SIDE, SIDE, 3], kind=TensorProto.UINT8)
    with pytest.raises(DataError, match=r"m.onnx gave an embedding that is zero or not finite"):
        OnnxEmbedder(file).embed(np.zeros((1, SIDE, SIDE, 3), np.uint8))


def test_ours_is_what_its_metadata_says(tmp_path: Path) -> None:
    known = {
        "weights_sha256": "abc",
        "preprocess": {"size": [SIDE, SIDE], "crop": [0.25, 0, 0.25, 0]},
        "pictures": "",
    }
    (tmp_path / "m.toml").write_text("size = [9, 9]")  # not asked
    file = model(
        tmp_path / "m.onnx", shape=[1, SIDE, SIDE, 3], kind=TensorProto.UINT8, metadata=json.dumps(known)
    )
    embedder = OnnxEmbedder(file)
    assert (embedder.fingerprint, embedder.pictures, embedder.notes) == ("abc", "", ())
    wide = np.random.default_rng(1).integers(1, 256, (SIDE, 2 * SIDE, 3)).astype(np.uint8)
    np.testing.assert_allclose(embedder.embed(wide), unit(wide[None, :, 4:12]), atol=1e-6)


def test_it_works_without_torch(tmp_path: Path) -> None:
    file = model(tmp_path / "m.onnx")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "p.png")
    code = (
        "import sys\nfrom facemetric.model.onnx.embedder import OnnxEmbedder\n"
        "print(OnnxEmbedder(sys.argv[1]).embed(sys.argv[2], faces='off').shape)\n"
        "print({'torch', 'timm', 'scipy', 'pandas'} & set(sys.modules) or 'light')"
    )
    line = [sys.executable, "-c", code, str(file), str(tmp_path / "p.png")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout == "(1, 192)\nlight\n"
