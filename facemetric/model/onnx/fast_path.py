"""The network of a weights folder on the CPU by ONNX Runtime: half the time of torch, and no torch to import.

The network alone is exported once: RGB pixels of its own size in, unit vectors out; the preprocessing stays ours, so
that it sees the same pixels. The file is FOLDER/network.onnx where the weights carry one, else it is made and kept in
the user's cache folder (XDG_CACHE_HOME, or ~/.cache). It is used for these weights alone: its metadata names their
SHA-256. Its answers differ from torch's in the last bits; how much was measured when it was made.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.files import write_whole
from facemetric.model.onnx.embedder import METADATA, OnnxEmbedder

if TYPE_CHECKING:
    from facemetric.model.embedder import Embedder

NETWORK = "network.onnx"
TAKES = "pixels of the network's size"  # `takes` in the metadata
# Of one number of a unit vector; more means that the exported file is wrong. Rounding alone makes more of a difference
# where a vector was short before it was brought to unit length, as of a drawn face: 1.4e-5 with shipped weights.
LARGEST_DIFFERENCE = 1e-4
COMPARED = 8  # drawn faces, on which it is measured
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # to make the file; to use it the last


def can_run() -> bool:
    """Whether ONNX Runtime is installed."""
    return importlib.util.find_spec("onnxruntime") is not None


def can_make() -> bool:
    """Whether all that is needed to make a file is installed."""
    return all(importlib.util.find_spec(name) is not None for name in NEEDED)


def cached_file(sha256: str) -> Path:
    """Where the file of these weights is kept for this user."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "facemetric" / f"{sha256[:32]}.onnx"


def open_network(folder: Path, config: Mapping[str, Any]) -> OnnxEmbedder | None:
    """The exported network of a weights folder and its config.json, None where there is none of these very weights."""
    sha256 = str(config.get("sha256") or "")
    if not sha256:
        return None
    wanted = Preprocess.from_dict(config["facemetric"]["preprocess"])
    for file in (folder / NETWORK, cached_file(sha256)):
        if file.is_file():
            found = OnnxEmbedder(file)
            known = found.metadata.get("takes") == TAKES and found.preprocess == wanted
            if known and found.metadata.get("weights_sha256") == sha256:
                found.pictures = str(config["facemetric"].get("pictures", ""))
                return found
    return None


def make_network(embedder: Embedder, file: Path) -> float:
    """Export an embedder's network to `file`, which appears whole; the largest difference from torch's answers.

    Raises ConfigError where the packages of the extra are missing, the backbone cannot be exported, or the file does
    not answer as torch does."""
    import torch

    from facemetric.model.onnx.export import PixelEmbedder, onnx_model
    from facemetric.model.onnx.graph import fold_affine

    pre = embedder.preprocess
    known = {
        "takes": TAKES,
        "weights_sha256": embedder.fingerprint,
        "architecture": embedder.arch,
        "embedding_size": embedder.embedding_size,
        "preprocess": pre.to_dict(),
    }
    example = torch.zeros(2, *pre.size, 3, dtype=torch.uint8)
    proto = onnx_model(PixelEmbedder(embedder), example, arch=embedder.arch, metadata=known)
    fold_affine(proto)
    found = [0.0]

    def fill(staged: Path) -> None:
        staged.write_bytes(proto.SerializeToString())
        found[0] = difference(embedder, OnnxEmbedder(staged))
        entry = next(each for each in proto.metadata_props if each.key == METADATA)
        entry.value = entry.value[:-1] + f', "largest_difference": {found[0]:.3g}}}'
        staged.write_bytes(proto.SerializeToString())

    write_whole(file, fill)
    return found[0]


def difference(embedder: Embedder, exported: OnnxEmbedder) -> float:
    """The largest difference of one number of a unit vector, on drawn faces. ConfigError above LARGEST_DIFFERENCE."""
    from facemetric.data.drawn.draw import draw_face, face_identity, face_nuisance

    transform = embedder.transform
    side = 112
    faces = [draw_face(face_identity(0, i), face_nuisance(0, i, 0), side) for i in range(COMPARED)]
    pixels = np.stack([transform.pixels(face) for face in faces])
    found = float(np.abs(embedder.embed_pixels(pixels) - exported.embed_pixels(pixels)).max())
    if not found <= LARGEST_DIFFERENCE:
        raise ConfigError(
            f"{embedder.arch} by ONNX Runtime differs from torch by {found:.2g} in a number of a unit vector, at most "
            f"{LARGEST_DIFFERENCE:g} is expected; use --runtime torch, and report the architecture"
        )
    return found
