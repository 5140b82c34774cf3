"""What `facemetric export` does: weights to one file for other runtimes, and how near its answers are to ours."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from facemetric.commands.evaluating.inputs import ListedPairs, list_pairs
from facemetric.commands.out_folder import claim_out, results_come
from facemetric.config import ExportConfig, check_ranges, require
from facemetric.config.calls import takes_options
from facemetric.data.drawn.draw import draw_face, face_identity, face_nuisance
from facemetric.data.images import BadImage, decode, normalise
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.pairs import read_pairs
from facemetric.data.transforms import eval_transform
from facemetric.errors import ConfigError, DataError, plural
from facemetric.evaluation.verification import pair_scores, verify_pairs
from facemetric.faces.template import POINTS, SIDE, TEMPLATE
from facemetric.files import write_text_whole
from facemetric.model.embedder import Embedder, embed_batch
from facemetric.model.onnx.export import OnnxEmbedder, export_onnx, quantize_onnx, required
from facemetric.model.onnx.fast_path import LARGEST_DIFFERENCE
from facemetric.model.weights.folder import FACES, expected_pictures, find_weights, read_config
from facemetric.model.weights.save_load import load_embedder

PARITY_IMAGES = 200  # crops on which both are compared
CALIBRATION_IMAGES = 512  # crops that give the ranges of int8
BATCH = 32

Crops = npt.NDArray[np.uint8]
Embed = Callable[[Crops], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Agreement:
    """How near one exported file is to torch on the same crops.

    `largest_difference` of one number, `lowest_cosine` of an image's two vectors; `accuracy` of the pairs, 0..1, None
    without pairs."""

    file: str
    megabytes: float
    largest_difference: float
    lowest_cosine: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the files, how near each is to torch, on how many images, and torch's own accuracy.

    `notes`: which listed pairs the accuracies leave out."""

    folder: Path
    files: tuple[Agreement, ...]
    images: int
    source: str
    accuracy: float | None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as export.json has them."""
        return asdict(self) | {"folder": str(self.folder)}


@takes_options(ExportConfig)
def export(config: ExportConfig) -> Exported:
    """Write weights as one ONNX or OpenVINO model that takes crops as they are; the options are those of ExportConfig.

    `export("runs/finetune")` is `facemetric export --weights runs/finetune`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_export(config)


def run_export(config: ExportConfig) -> Exported:
    """Export weights, compare the result with torch, and write export.json beside it.

    Raises ConfigError, DataError or WeightsError; where an exported file does not agree with torch, ConfigError."""
    check_options(config)
    folder = find_weights(config.weights)
    embedder = load_embedder(folder)
    pairs = read_pairs(config.pairs) if config.pairs else None
    index = read_index(list(config.data)) if config.data else None
    claim_out(config, weights=embedder, images=index)
    listed = list_pairs(pairs, index, config.out) if pairs is not None and index is not None else None
    sample = (
        drawn_crops(PARITY_IMAGES, config.side)
        if index is None
        else sample_crops(index, PARITY_IMAGES, config.side)
    )
    source = " ".join(config.data) or "drawn faces"
    models: dict[Path, Embed] = {}
    results_come(config)
    onnx_file = config.out / "model.onnx"
    export_onnx(onnx_file, embedder, side=config.side, flip=config.flip, metadata=describe(folder, config))
    models[onnx_file] = OnnxEmbedder(onnx_file).embed
    if config.to == "openvino":
        file = export_openvino(onnx_file, config.out / "model.xml")
        models = {file: openvino_embed(file)}
        onnx_file.unlink()
    if config.int8 and index is not None:
        calibration = sample_crops(index, CALIBRATION_IMAGES, config.side)
        file = quantize_onnx(onnx_file, config.out / "model_int8.onnx", in_batches(calibration))
        models[file] = OnnxEmbedder(file).embed
    ours = torch_embed(embedder, flip=config.flip)
    found = [agreement(file, embed(sample), ours(sample)) for file, embed in models.items()]
    check_agreement(found[0])
    accuracy = None
    if listed is not None and index is not None:
        accuracy, *others = accuracies(listed, index, config.side, [ours, *models.values()])
        found = [replace(each, accuracy=other) for each, other in zip(found, others, strict=True)]
    notes = (*left_behind(folder, flip=config.flip), *(listed.notes if listed is not None else ()))
    exported = Exported(config.out, tuple(found), len(sample), source, accuracy, notes)
    write_text_whole(config.out / "export.json", json.dumps(exported.to_dict(), indent=2) + "\n")
    return exported


def check_options(config: ExportConfig) -> None:
    """Raise ConfigError where options do not go together, or a package is missing."""
    require(bool(config.weights), "no weights were given: `facemetric export WEIGHTS`, such as faces-112")
    check_ranges(config)
    require(
        not (config.int8 and config.to != "onnx"), f"--int8 is for --to onnx, not {config.to}; leave one out"
    )
    require(
        not config.int8 or bool(config.data),
        "--int8 needs crops to find its ranges: give their --data",
    )
    require(config.pairs is None or bool(config.data), "--pairs needs its images: give their --data")
    for package in ("onnx", "onnxscript", "onnxruntime", *(["openvino"] if config.to == "openvino" else [])):
        required(package)  # before --out is taken


def describe(folder: Path, config: ExportConfig) -> dict[str, Any]:
    """What goes into the file's metadata: where it comes from, what it takes, the thresholds that hold for it.

    A threshold that was chosen with the mirror image averaged in, or without, holds for such embeddings alone. Of
    weights that expect faces: the template, (x, y) of the five points in a crop of this side."""
    known = read_config(folder)
    ours = known["facemetric"]
    pictures = expected_pictures(known)
    template = {"points": (TEMPLATE * (config.side / SIDE)).round(4).tolist(), "names": list(POINTS)}
    return {
        "weights_sha256": known.get("sha256"),
        "architecture": known["architecture"],
        "embedding_size": ours["embedding_size"],
        "crop": [config.side, config.side],
        "flip": config.flip,
        "pictures": pictures,
        **({"template": template} if pictures == FACES else {}),
        "thresholds": holding(ours.get("thresholds") or {}, flip=config.flip),
        **(
            {"answers": answers}
            if (answers := ours.get("answers")) and answers.get("flip") == config.flip
            else {}
        ),
    }


def holding(thresholds: Mapping[str, Any], *, flip: bool) -> dict[str, Any]:
    """The thresholds that were chosen with the mirror image as the export has it."""
    return {far: one for far, one in thresholds.items() if bool(one.get("flip")) == flip}


def left_behind(folder: Path, *, flip: bool) -> tuple[str, ...]:
    """A note where the file holds none of the weights' thresholds, or lacks some of them."""
    stored = read_config(folder)["facemetric"].get("thresholds") or {}
    lost = len(stored) - len(holding(stored, flip=flip))
    if not lost:
        return ()
    had, needed = ("without", " --flip") if flip else ("with", "")
    return (
        f"{lost} of {plural(len(stored), 'threshold')} of the weights were chosen {had} the mirror image and do not "
        f"hold for this file: left out (facemetric calibrate{needed} chooses others)",
    )


def drawn_crops(count: int, side: int) -> Crops:
    """Drawn faces (N, side, side, 3), for a comparison without data."""
    faces = (draw_face(face_identity(0, i), face_nuisance(0, i, 0), side) for i in range(count))
    return np.stack([np.asarray(face) for face in faces])


def crop_of(index: ImageIndex, row: int, side: int) -> Image.Image:
    """One image as a crop of `side` x `side`. Raises DataError where it cannot be read."""
    try:
        image = decode(index.read(row))
    except BadImage as error:
        raise DataError(
            f"{index.name(row)} cannot be read ({error.reason}); mend it, or leave it out"
        ) from error
    return image if image.size == (side, side) else image.resize((side, side), Image.Resampling.BILINEAR)


def sample_crops(index: ImageIndex, count: int, side: int) -> Crops:
    """Crops (N, side, side, 3) spread over the index."""
    rows = np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))
    return np.stack([np.asarray(crop_of(index, int(row), side)) for row in rows])


def in_batches(crops: Crops) -> Iterator[Crops]:
    """The crops in batches of BATCH."""
    for at in range(0, len(crops), BATCH):
        yield crops[at : at + BATCH]


def torch_embed(embedder: Embedder, *, flip: bool) -> Embed:
    """Our own way: the evaluation's transform, then the network in float32."""
    transform = eval_transform(embedder.preprocess)

    @torch.inference_mode()
    def embed(crops: Crops) -> npt.NDArray[np.float32]:
        parts = []
        for batch in in_batches(crops):
            pixels = torch.from_numpy(np.stack([transform(Image.fromarray(crop)) for crop in batch]))
            seen = normalise(pixels, embedder.preprocess, embedder.device)
            parts.append(embed_batch(embedder, seen, flip=flip).numpy())
        return np.concatenate(parts)

    return embed


def agreement(file: Path, theirs: npt.NDArray[np.float32], ours: npt.NDArray[np.float32]) -> Agreement:
    """How near two models' vectors of the same crops are."""
    size = file.stat().st_size + (file.with_suffix(".bin").stat().st_size if file.suffix == ".xml" else 0)
    cosine = np.einsum("nd,nd->n", theirs.astype(np.float64), ours.astype(np.float64))
    return Agreement(file.name, size / 1e6, float(np.abs(theirs - ours).max()), float(cosine.min()))


def check_agreement(found: Agreement) -> None:
    """Raise ConfigError where the exported file does not answer as torch does."""
    if not found.largest_difference <= LARGEST_DIFFERENCE:
        raise ConfigError(
            f"{found.file} differs from torch by {found.largest_difference:.2g} in a number of a unit vector, at most "
            f"{LARGEST_DIFFERENCE:g} is expected; do not use it, and report the architecture"
        )


def accuracies(listed: ListedPairs, index: ImageIndex, side: int, models: list[Embed]) -> list[float]:
    """Fold accuracy of the pairs by each model, each image read once."""
    pairs, needed = listed.pairs, np.array(listed.needed())
    a, b = np.searchsorted(needed, listed.rows_a), np.searchsorted(needed, listed.rows_b)
    parts: list[list[npt.NDArray[np.float32]]] = [[] for _ in models]
    for at in range(0, len(needed), 8 * BATCH):
        crops = np.stack([np.asarray(crop_of(index, int(row), side)) for row in needed[at : at + 8 * BATCH]])
        for part, embed in zip(parts, models, strict=True):
            part.append(embed(crops))
    found = []
    for part in parts:
        result = verify_pairs(pair_scores(np.concatenate(part), a, b), pairs.same, fold=pairs.fold)
        assert result.accuracy is not None
        found.append(float(result.accuracy.mean))
    return found


def export_openvino(onnx_file: Path, out: Path) -> Path:
    """The ONNX file as OpenVINO's pair of .xml and .bin, in float32."""
    openvino = required("openvino")
    openvino.save_model(openvino.convert_model(str(onnx_file)), str(out), compress_to_fp16=False)
    return out


def openvino_embed(file: Path) -> Embed:
    """An exported .xml at work, on the CPU."""
    openvino = required("openvino")
    model = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def embed(crops: Crops) -> npt.NDArray[np.float32]:
        return np.concatenate([model(batch)[0] for batch in in_batches(crops)])

    return embed


def export_text(found: Exported) -> str:
    """What the terminal says."""
    lines = [
        f"exported to {found.folder}, compared with torch on {plural(found.images, 'image')} ({found.source})"
    ]
    for each in found.files:
        line = (
            f"{each.file:<16} {each.megabytes:.1f} MB  largest difference {each.largest_difference:.1e}, "
            f"lowest cosine {each.lowest_cosine:.6f}"
        )
        lines.append(line + (f", accuracy {each.accuracy:.4f}" if each.accuracy is not None else ""))
    lines += [f"note: {note}" for note in found.notes]
    if found.accuracy is not None:
        lines.append(f"{'torch':<16} accuracy {found.accuracy:.4f}")
    return "\n".join(lines)
