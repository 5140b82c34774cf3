"""Weights that were found by name, before anything large is read, and what runs them: torch, or ONNX Runtime.

Nothing here imports torch until it is what computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.machine import cuda_possible, import_timm, pick_device, say
from facemetric.model.onnx.embedder import OnnxEmbedder, required
from facemetric.model.onnx.fast_path import cached_file, can_make, can_run, make_network, open_network
from facemetric.model.pictures import crop_side
from facemetric.model.weights.folder import (
    expected_pictures,
    find_onnx,
    find_weights,
    is_onnx,
    read_config,
)

if TYPE_CHECKING:
    from facemetric.model.embedder import Embedder

    Network = Embedder | OnnxEmbedder

Runtime = Literal["auto", "torch", "onnx"]
WORTH_EXPORTING = 5000  # pictures: making the network's file takes the time that it saves on so many
HANDED_ON = ("thresholds", "answers")  # of config.json, which an exported file holds too


@dataclass(frozen=True)
class Weights:
    """Weights that were found: the name that was given, their folder, and its config.json.

    `onnx` is a model as an ONNX file, which is the folder then; its config says what the file does."""

    name: str
    folder: Path
    config: Mapping[str, Any]
    onnx: OnnxEmbedder | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights; empty where they name none."""
        return str(self.config.get("sha256") or "")

    @property
    def pictures(self) -> str:
        """What pictures they expect: "faces", or "" for others."""
        return expected_pictures(self.config)

    @property
    def preprocess(self) -> Preprocess:
        """What a picture goes through before the network."""
        return Preprocess.from_dict(self.config["facemetric"]["preprocess"])

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return int(self.config["facemetric"]["embedding_size"])

    @property
    def crop_side(self) -> int:
        """Side in pixels of the crops to cut from photographs."""
        return crop_side(self.preprocess)

    @cached_property
    def exported(self) -> OnnxEmbedder | None:
        """The network's file for ONNX Runtime that is there already; None where there is none or no runtime."""
        return open_network(self.folder, self.config) if can_run() else None

    def load(self, device: str) -> Embedder:
        """The network by torch, on a device such as `auto` or `cpu`."""
        import_timm()
        from facemetric.model.weights.save_load import load_folder

        return load_folder(self.folder, pick_device(device))

    def network(self, device: str, runtime: str) -> Network:
        """What embeds: by torch on a device, or by ONNX Runtime on the CPU, whose file is made where there is none.

        `runtime` is torch or onnx. Raises ConfigError where a package is missing."""
        if self.onnx is not None:
            return self.onnx
        if runtime == "torch":
            return self.load(device)
        if self.exported is not None:
            return self.exported
        file = cached_file(self.fingerprint)
        apart = make_network(self.load("cpu"), file)
        say(f"made {file} for ONNX Runtime; it differs from torch by {apart:.1g} at most")
        found = open_network(self.folder, self.config)
        assert found is not None
        return found

    def runtime(self, wanted: str, device: str, images: int) -> str:
        """torch or onnx, of `auto`, torch or onnx. ONNX Runtime where it is installed, the device is a CPU, and its
        file is there or pays for so many images. Raises ConfigError where onnx cannot be had."""
        if self.onnx is not None:
            if wanted == "torch":
                raise ConfigError(f"--runtime torch cannot run {self.name}; leave it out")
            return "onnx"
        on_cpu = device == "cpu" or (device == "auto" and not cuda_possible())
        on_cpu = on_cpu or pick_device(device).type == "cpu"
        if wanted == "onnx":
            if not on_cpu and device != "auto":
                raise ConfigError(f"--runtime onnx computes on the CPU, not on {device}; leave one out")
            if not self.fingerprint:
                raise ConfigError(f"{self.folder} names no sha256 of its weights; use --runtime torch")
            required("onnxruntime")
            return "onnx"
        if wanted == "torch" or not (on_cpu and self.fingerprint):
            return "torch"
        return (
            "onnx" if self.exported or (images >= WORTH_EXPORTING and can_run() and can_make()) else "torch"
        )


def open_weights(name: str | Path) -> Weights:
    """The weights of a name, before anything large is read. Raises WeightsError where there are none."""
    folder = find_weights(name)
    return Weights(str(name), folder, read_config(folder))


def open_model(name: str | Path) -> Weights:
    """open_weights, which takes anybody's model too, as an .onnx file."""
    if not is_onnx(name):
        return open_weights(name)
    model = OnnxEmbedder(find_onnx(name))
    say(*(f"note: {note}" for note in model.notes))
    ours = {
        "preprocess": model.preprocess.to_dict(),
        "embedding_size": model.embedding_size,
        "pictures": model.pictures,
        **{key: model.metadata[key] for key in HANDED_ON if model.metadata.get(key)},
    }
    architecture = str(model.metadata.get("architecture") or "an ONNX file")
    config = {"architecture": architecture, "sha256": model.fingerprint, "facemetric": ours}
    return Weights(str(name), Path(name), config, model)
