"""Weights that need no torch: a network that gives the pixels of 8 x 8 as they are, as export would have written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from facemetric.data.images import Preprocess
from facemetric.model.onnx.embedder import METADATA
from facemetric.model.onnx.fast_path import NETWORK, TAKES
from facemetric.model.weights.folder import find_weights, read_config

SIDE = 8
SHA256 = "ab" * 32


def kept() -> dict[str, Any]:
    """What is beside a network, in metadata and in config.json: thresholds and answers are those of faces-96."""
    ours = read_config(find_weights("faces-96"))["facemetric"]
    return {
        "embedding_size": 3 * SIDE * SIDE,
        "preprocess": Preprocess(size=(SIDE, SIDE)).to_dict(),
        "pictures": "faces",
        "thresholds": ours["thresholds"],
        "answers": ours["answers"],
    }


def onnx_file(file: Path, **more: Any) -> Path:
    """The network as an .onnx file."""
    nodes = [
        helper.make_node("Cast", ["pixels"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["embeddings"], axis=1),
    ]
    taken = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    given = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", 3 * SIDE * SIDE])
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [taken], [given]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    known = {"weights_sha256": SHA256, "architecture": "pixels", **kept(), **more}
    helper.set_model_props(proto, {METADATA: json.dumps(known)})
    onnx.save(proto, file)
    return file


def carrying_weights(folder: Path) -> Path:
    """A weights folder that carries the network for ONNX Runtime, and no other."""
    folder.mkdir()
    onnx_file(folder / NETWORK, takes=TAKES)
    config = {"architecture": "pixels", "sha256": SHA256, "facemetric": {"format": 1, **kept()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
