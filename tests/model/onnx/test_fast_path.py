"""The network by ONNX Runtime: the same answers as torch, for these weights alone, chosen where it pays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper

import facemetric as fm
from facemetric.commands.vectors.embed import embed
from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.embedder import build_embedder
from facemetric.model.onnx import fast_path
from facemetric.model.onnx.graph import fold_affine
from facemetric.model.weights import opened as door
from facemetric.model.weights.folder import shipped_weights
from facemetric.model.weights.opened import open_model
from facemetric.model.weights.save_load import save_weights

CUT = Preprocess(
    size=(32, 40), crop=(0.1, 0.2, 0.1, 0.0), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), color="bgr"
)
PLAIN: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 8}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "facemetric"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the network's file is made once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def made(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared))
    return shared / "facemetric"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fast") / "weights"
    embedder = build_embedder("test_resnet", preprocess=CUT, embedding_size=16)
    save_weights(folder, embedder, provenance={}, metrics={})
    return folder


def test_the_network_answers_as_torch_does(weights: Path, made: Path) -> None:
    found = open_model(str(weights))
    network = found.network("cpu", "onnx")
    embedder = found.load("cpu")
    assert isinstance(network, fm.OnnxEmbedder)
    assert [path.name for path in made.iterdir()] == [f"{embedder.fingerprint[:32]}.onnx"]
    assert 0 < network.metadata["largest_difference"] < 1e-5
    assert network.fingerprint == embedder.fingerprint
    pictures = np.random.default_rng(0).integers(0, 256, (11, 60, 50, 3)).astype(np.uint8)
    for flip in (False, True):
        wanted = embedder.embed(pictures, flip=flip)
        np.testing.assert_allclose(network.embed(pictures, flip=flip), wanted, atol=2e-6)


@pytest.mark.parametrize("folder", shipped_weights(), ids=lambda folder: folder.name)
def test_shipped_weights_have_a_file_that_answers_as_they_do(folder: Path, tmp_path: Path) -> None:
    """`embed` makes it for many pictures, and would refuse weights whose file differs."""
    embedder = fm.load_embedder(folder, "cpu")
    apart = fast_path.make_network(embedder, tmp_path / "network.onnx")
    assert 0 < apart < fast_path.LARGEST_DIFFERENCE / 3


def test_the_file_of_other_weights_is_not_used(
    weights: Path, cache: Path, shared: Path, tmp_path: Path
) -> None:
    found = open_model(str(weights))
    own = Path(shutil.copytree(weights, tmp_path / "own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(shared))
        shutil.copy(found.network("cpu", "onnx").file, own / fast_path.NETWORK)  # type: ignore[union-attr]
    carrying = open_model(str(own))
    opened = fast_path.open_network(carrying.folder, carrying.config)
    assert opened is not None
    assert opened.file == own / "network.onnx"
    config = json.loads((own / "config.json").read_text())
    config["sha256"] = "0" * 64
    assert fast_path.open_network(own, config) is None
    assert carrying.runtime("auto", "cpu", 1) == "onnx"  # it is there
    found = open_model(str(weights))  # what was found there is kept, and the cache is another one now
    assert found.runtime("auto", "cpu", 1) == "torch"  # it would have to be made
    assert found.runtime("auto", "cpu", door.WORTH_EXPORTING) == "onnx"
    assert found.runtime("torch", "cpu", door.WORTH_EXPORTING) == "torch"


def test_without_the_package_auto_is_torch(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "can_run", lambda: False)
    found = open_model(str(weights))
    assert found.runtime("auto", "cpu", 10**6) == "torch"
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(
        ConfigError, match=r"the package onnxruntime is missing; pip install 'facemetric\[onnx\]'"
    ):
        found.runtime("onnx", "cpu", 1)


def test_a_file_that_answers_otherwise_is_not_kept(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fast_path.OnnxEmbedder.embed_pixels
    monkeypatch.setattr(
        fast_path.OnnxEmbedder, "embed_pixels", lambda self, pixels: real(self, pixels)[:, ::-1]
    )
    with pytest.raises(ConfigError, match=r"by ONNX Runtime differs from torch by .*use --runtime torch"):
        open_model(str(weights)).network("cpu", "onnx")
    assert not list(cache.iterdir())


def test_embed_goes_on_by_what_it_began_with(weights: Path, faces: Path, made: Path, tmp_path: Path) -> None:
    by_onnx = embed(faces, weights=weights, out=tmp_path / "onnx.npz", runtime="onnx", **PLAIN)
    auto = embed(faces, weights=weights, out=tmp_path / "auto.npz", **PLAIN)
    by_torch = embed(faces, weights=weights, out=tmp_path / "torch.npz", runtime="torch", **PLAIN)
    assert (by_onnx.runtime, auto.runtime, by_torch.runtime) == ("onnx", "onnx", "torch")
    assert by_onnx.file.read_bytes() == auto.file.read_bytes()
    one, other = (EmbeddingTable.load(found.file) for found in (by_onnx, by_torch))
    np.testing.assert_allclose(one.embeddings, other.embeddings, atol=2e-6)
    assert one.weights == other.weights


def test_eval_keeps_its_bits_unless_asked(weights: Path, faces: Path, made: Path, tmp_path: Path) -> None:
    open_model(str(weights)).network("cpu", "onnx")
    plain = {"data": faces, "workers": 0, "device": "cpu", "report": False}
    tables = {}
    for name, options in (("torch", {}), ("onnx", {"runtime": "onnx"})):
        fm.evaluate(weights, out=tmp_path / name, **plain, **options)
        tables[name] = EmbeddingTable.load(tmp_path / name / "embeddings.npz").embeddings
    with torch.inference_mode():
        wanted = embed(
            faces, weights=weights, out=tmp_path / "E.npz", runtime="torch", **PLAIN | {"batch_size": 256}
        )
    np.testing.assert_array_equal(tables["torch"], wanted.table().embeddings)
    assert not np.array_equal(tables["onnx"], tables["torch"])
    np.testing.assert_allclose(tables["onnx"], tables["torch"], atol=2e-6)


def test_eval_scores_anybodys_onnx_file(weights: Path, faces: Path, made: Path, tmp_path: Path) -> None:
    """And takes it beside other weights; its thresholds would be its own."""
    found = open_model(str(weights))
    file = Path(shutil.copy(found.network("cpu", "onnx").file, tmp_path / "theirs.onnx"))  # type: ignore[union-attr]
    plain = {"data": faces, "workers": 0, "device": "cpu", "report": False}
    fm.evaluate(file, compare=weights, out=tmp_path / "out", **plain)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["weights"]["sha256"] == metrics["second_weights"]["sha256"]
    with pytest.raises(ConfigError, match=r"--runtime torch cannot run .*theirs.onnx"):
        open_model(str(file)).runtime("torch", "cpu", 1)


def graph(scale: float, shift: float, *, twice: bool = False) -> onnx.ModelProto:
    """A convolution behind which a number scales, and one shifts, what a rectifier leaves, and another convolution."""
    rng = np.random.default_rng(0)
    sizes = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (5, 4, 3, 3), "b2": (5,)}
    values = {name: rng.normal(size=size) for name, size in sizes.items()} | {"s": [scale], "t": [shift]}
    constants = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Mul", ["s", "r"], ["m"]),
        helper.make_node("Add", ["m", "t"], ["a"]),
        helper.make_node("Add", ["a", "r" if twice else "t"], ["o"]),
        helper.make_node("Conv", ["o", "w2", "b2"], ["y"], pads=[1, 1, 1, 1]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "y")]
    ends[0] = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answer(proto: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    return session.run(None, {"x": pixels})[0]


@pytest.mark.parametrize(("scale", "shift"), [(1.7, 0.3), (0.4, -0.2), (-1.3, 0.5), (-0.5, -0.6)])
def test_folding_changes_no_answer(scale: float, shift: float) -> None:
    proto = graph(scale, shift)
    wanted = answer(proto)
    assert fold_affine(proto) == 1
    assert [node.op_type for node in proto.graph.node] == ["Conv", "Clip", "Add", "Conv"]
    np.testing.assert_allclose(answer(proto), wanted, atol=1e-4)


def test_a_value_that_others_use_is_not_folded() -> None:
    proto = graph(2.0, 1.0, twice=True)
    before = proto.SerializeToString()
    assert fold_affine(proto) == 0
    assert proto.SerializeToString() == before
