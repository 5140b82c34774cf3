"""Weights are a folder: `config.json` and `model.safetensors`, and plain timm opens it.

The projection is stored under the name of the backbone's classifier, so
`timm.create_model("local-dir:FOLDER", pretrained=True)` gives the embedding before normalisation, and with
`num_classes=0` the backbone's features. (Architectures with two classifiers keep it under `projection`.)
"""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError, WeightsError, writing
from facemetric.files import file_hash, sync
from facemetric.model.embedder import Embedder, build_backbone
from facemetric.model.weights.folder import (
    CONFIG,
    FORMAT,
    MODEL,
    expected_pictures,
    find_weights,
    read_config,
    replace_folder,
)


def save_weights(
    folder: Path,
    embedder: Embedder,
    *,
    provenance: dict[str, Any],
    metrics: dict[str, Any],
    half: bool = False,
) -> None:
    """Write the embedder as a weights folder; the folder appears whole or not at all.

    `provenance` says where the weights come from (data, commit, versions, seed), `metrics` how good they are.
    `half` stores matrices and filters in float16, at half the size; batch norms and biases stay float32."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(folder.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    key = classifier_key(embedder.arch)
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in embedder.backbone.state_dict().items()
    }
    for name, value in embedder.folded_projection().state_dict().items():
        tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
    if half:
        tensors = {name: value.half() if value.ndim > 1 else value for name, value in tensors.items()}
    try:
        with writing(folder):
            # Not save_file: a full disk would be an error of its own kind there.
            (staging / MODEL).write_bytes(save(tensors, metadata={"format": "pt"}))
            config = describe(embedder, key) | {"sha256": file_hash(staging / MODEL)}
            config["facemetric"] |= {"provenance": provenance, "metrics": metrics}
            (staging / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            for path in (staging / MODEL, staging / CONFIG, staging):
                sync(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    replace_folder(staging, folder)


def describe(embedder: Embedder, classifier: str) -> dict[str, Any]:
    """What config.json says of the embedder: timm's own fields, and ours under `facemetric`."""
    pre = embedder.preprocess
    has_projection = isinstance(embedder.projection, nn.Linear) and classifier != "projection"
    pretrained_cfg = dict(getattr(embedder.backbone, "pretrained_cfg", None) or {})
    kept = {name: pretrained_cfg[name] for name in ("first_conv", "pool_size") if pretrained_cfg.get(name)}
    outputs = embedder.embedding_size if has_projection else 0
    return {
        "architecture": embedder.arch,
        "num_classes": outputs,
        "num_features": embedder.num_features,
        "model_args": embedder.model_args,
        "pretrained_cfg": kept
        | {
            "classifier": None if classifier == "projection" else classifier,
            "num_classes": outputs,
            "input_size": [3, *pre.size],
            "mean": list(pre.mean),
            "std": list(pre.std),
            "interpolation": pre.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",  # stretched to input_size, as `preprocess` does
        }
        | ({"notes": [note]} if (note := beyond_timm(pre)) else {}),
        "facemetric": {
            "format": FORMAT,
            "version": metadata.version("facemetric"),
            "embedding_size": embedder.embedding_size,
            "projection": classifier if isinstance(embedder.projection, nn.Linear) else None,
            "preprocess": pre.to_dict(),
        }
        | ({"pictures": embedder.pictures} if embedder.pictures else {}),
    }


def beyond_timm(pre: Preprocess) -> str:
    """What `preprocess` does that timm's own transform cannot: for whoever opens the weights with plain timm."""
    steps = []
    if any(pre.crop):
        left, top, right, bottom = pre.crop
        steps.append(
            f"cut off {left:g}, {top:g}, {right:g}, {bottom:g} of the picture at left, top, right, bottom first"
        )
    if pre.color == "bgr":
        steps.append("give the colours in the order blue, green, red")
    if not steps:
        return ""
    return (
        f"timm's transform leaves out: {'; '.join(steps)}. facemetric.load_embedder(...).transform does it all; "
        "without it embeddings are others and no stored threshold holds"
    )


def load_embedder(name: str | Path, device: str | torch.device = "cpu") -> Embedder:
    """The embedder of a weights folder, a run folder or a shipped name, in evaluation mode.

    Raises WeightsError where the folder is missing, cut short, or does not fit its own config."""
    return load_folder(find_weights(name), device)


def load_folder(folder: Path, device: str | torch.device = "cpu") -> Embedder:
    """load_embedder of a folder that `find_weights` found."""
    config = read_config(folder)
    ours = config["facemetric"]
    pre = Preprocess.from_dict(ours["preprocess"])
    try:
        backbone, model_args = build_backbone(
            config["architecture"], pre.size, args=config.get("model_args") or {}
        )
    except ConfigError as error:
        raise WeightsError(f"{folder / CONFIG}: {error}") from error
    tensors = read_tensors(folder, config)
    key = ours.get("projection")
    projection: nn.Module = nn.Identity()
    try:
        if key:
            weight, bias = tensors.pop(f"{key}.weight"), tensors.pop(f"{key}.bias")
            projection = nn.Linear(weight.shape[1], weight.shape[0])
            projection.load_state_dict({"weight": weight, "bias": bias})
        backbone.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(
            f"{folder / MODEL} does not hold {config['architecture']} with {ours['embedding_size']} outputs: {reason}"
        ) from error
    embedder = Embedder(
        backbone, projection, arch=config["architecture"], model_args=model_args, preprocess=pre
    )
    embedder.fingerprint = str(config.get("sha256") or "")
    embedder.pictures = expected_pictures(config)
    return embedder.to(device).eval()


def read_tensors(folder: Path, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a weights folder in float32, after their hash was checked."""
    path = folder / MODEL
    if not path.is_file():
        raise WeightsError(f"{folder} has a {CONFIG} but no {MODEL}; copy the whole folder")
    expected = config.get("sha256")
    if expected and file_hash(path) != expected:
        raise WeightsError(
            f"{path} is not the file that {CONFIG} describes (cut short or changed); copy it again"
        )
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def classifier_key(arch: str) -> str:
    """timm's name of the architecture's last linear layer; `projection` where it has none or two."""
    config = timm.get_pretrained_cfg(arch)
    classifier = config.classifier if config is not None else None
    return classifier if isinstance(classifier, str) else "projection"
