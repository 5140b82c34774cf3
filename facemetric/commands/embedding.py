"""The door of the commands that embed images: weights and images are found here, once, and handed down.

Images that cannot be read are listed, judged and counted in one way for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facemetric import distributed
from facemetric.config import CheckConfig, ClusterConfig, DataConfig, EvalConfig, check_least, require
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.eval_transform import eval_transform
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import load_batches
from facemetric.errors import DataError, first_few
from facemetric.evaluation.audit.seen import Seen, training_images_seen
from facemetric.evaluation.embed import Embedded, embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.faces.finder import face_finder
from facemetric.machine import pick_device, pick_workers, progress_shown, say
from facemetric.model.colour_check import CROPS, colours_suspected
from facemetric.model.embedder import Embedder
from facemetric.model.fast_path import cached_file, can_make, can_run, make_network, open_network
from facemetric.model.onnx_embedder import OnnxEmbedder, required
from facemetric.model.pictures import crop_side
from facemetric.model.weights import load_embedder
from facemetric.model.weights_folder import expected_pictures, find_onnx, find_weights, is_onnx, read_config
from facemetric.training.run_folder import BAD_IMAGES

# Sets of images beside the first that a command reads: each has a list of bad images of its own.
GALLERY, SECOND, TEST, TRAIN, VALIDATION = "gallery", "second", "test", "train", "validation"
COHORT = "cohort"


Network = Embedder | OnnxEmbedder
WORTH_EXPORTING = 5000  # pictures: making the network's file takes the time that it saves on so many


@dataclass(frozen=True)
class Weights:
    """Weights that were found: the name that was given, their folder, and its config.json.

    `onnx` is anybody's model as an ONNX file, which is the folder then; its config says what the file does."""

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

    def load(self, device: str) -> Embedder:
        """The network, on a device such as `auto` or `cpu`."""
        return load_embedder(self.folder, pick_device(device))

    @property
    def crop_side(self) -> int:
        """Side in pixels of the crops to cut from photographs."""
        return crop_side(Preprocess.from_dict(self.config["facemetric"]["preprocess"]))

    def network(self, device: str, runtime: str) -> Network:
        """What embeds: by torch on a device, or by ONNX Runtime on the CPU, whose file is made where there is none.

        `runtime` is torch or onnx. Raises ConfigError where a package is missing."""
        if self.onnx is not None:
            return self.onnx
        if runtime == "torch":
            return self.load(device)
        if (found := open_network(self.folder, self.config)) is None:
            apart = make_network(self.load("cpu"), cached_file(self.fingerprint))
            say(
                f"made {cached_file(self.fingerprint)} for ONNX Runtime; it differs from torch by {apart:.1g} at most"
            )
            found = open_network(self.folder, self.config)
        assert found is not None
        return found

    def runtime(self, wanted: str, device: str, images: int) -> str:
        """torch or onnx, of `auto`, torch or onnx. ONNX Runtime where it is installed, the device is a CPU, and its
        file is there or pays for so many images. Raises ConfigError where onnx cannot be had."""
        if self.onnx is not None:
            require(wanted != "torch", f"--runtime torch cannot run {self.name}; leave it out")
            return "onnx"
        on_cpu = pick_device(device).type == "cpu"
        if wanted == "onnx":
            require(
                on_cpu or device == "auto",
                f"--runtime onnx computes on the CPU, not on {device}; leave one out",
            )
            require(
                bool(self.fingerprint), f"{self.folder} names no sha256 of its weights; use --runtime torch"
            )
            required("onnxruntime")
            return "onnx"
        if wanted == "torch" or not (on_cpu and can_run() and self.fingerprint):
            return "torch"
        at_hand = open_network(self.folder, self.config) is not None
        return "onnx" if at_hand or (images >= WORTH_EXPORTING and can_make()) else "torch"

    def seen(self, index: ImageIndex) -> Seen | None:
        """How much of the images is of their training, from a sample; None where they keep no hashes."""
        return training_images_seen(self.folder, index)


def open_model(name: str) -> Weights:
    """open_weights, which takes anybody's model too, as an .onnx file."""
    if not is_onnx(name):
        return open_weights(name)
    model = OnnxEmbedder(find_onnx(name))
    say(*(f"note: {note}" for note in model.notes))
    ours = {
        "preprocess": model.preprocess.to_dict(),
        "embedding_size": model.embedding_size,
        "pictures": model.pictures,
    }
    architecture = str(model.metadata.get("architecture") or "an ONNX file")
    config = {"architecture": architecture, "sha256": model.fingerprint, "facemetric": ours}
    return Weights(name, Path(name), config, model)


def open_weights(name: str) -> Weights:
    """The weights of a name, before anything large is read. Raises WeightsError where there are none."""
    folder = find_weights(name)
    return Weights(name, folder, read_config(folder))


def open_images(sources: Sequence[str] | str, *, loose: bool = False) -> ImageIndex:
    """The images of DATA; what was skipped is printed. `loose`: no folder for each identity."""
    index = announced(read_index(sources, loose=loose))
    if distributed.together():
        distributed.check_alike({"the images": index.fingerprint})
    return index


def colours_in(model: OnnxEmbedder | None, index: ImageIndex) -> str:
    """A warning where anybody's model seems to take the colours of the images the wrong way round, else ""."""
    if model is None or model.metadata:
        return ""
    rows = np.unique(np.linspace(0, len(index) - 1, min(CROPS, len(index))).astype(int))
    (batch,) = load_batches(index, [rows], eval_transform(model.preprocess))
    suspicion = colours_suspected(model.embed_pixels, batch.images.numpy())
    return f"warning: {model.colour_note(suspicion)}" if suspicion else ""


def check_config(config: DataConfig | EvalConfig) -> None:
    """Raise ConfigError for what every such command needs, before any file is read."""
    check_least(config, {"batch_size": 1, "seed": 0, "workers": -1})
    require(0 <= config.max_bad <= 1, f"--max-bad is {config.max_bad}; it is a share, choose 0..1")
    embedded = [name for name in getattr(config, "compare", ()) if not is_stored(name)]
    require(
        not (config.flip and getattr(config, "embeddings", None)) or bool(embedded),
        "--flip has no effect on --embeddings, which are made already: leave it out, or give --weights",
    )


def is_stored(name: str) -> bool:
    """Whether a name is that of embeddings on disk, not of weights or images."""
    return name.lower().endswith((".npz", ".parquet"))


def announced(index: ImageIndex, of: str = "") -> ImageIndex:
    """The index, after its notes were printed, each with `of` before it."""
    for note in index.notes:
        say(of + note)
    return index


def bad_images_of(out: Path, of: str = "") -> Path:
    """The list of bad images of a set: bad_images.csv, or test_bad_images.csv and so on."""
    return out / (f"{of}_{BAD_IMAGES}" if of else BAD_IMAGES)


def remove_lists(out: Path) -> None:
    """Remove the lists of bad images of an earlier run."""
    for of in ("", GALLERY, SECOND, TEST, TRAIN, VALIDATION, COHORT):
        bad_images_of(out, of).unlink(missing_ok=True)


def list_bad(
    index: ImageIndex, bad: list[tuple[int, str]], path: Path, *, max_bad: float, outcome: str, of: str = ""
) -> None:
    """List the rows that cannot be read, say how many they are, and what becomes of them.

    Raises DataError where they are more than the share `max_bad` of the index."""
    path.unlink(missing_ok=True)  # of an earlier run
    if bad:
        note_bad(BadImageLog(path, len(index), max_bad), index, bad)
        whose = f"{of}: " if of else ""
        say(f"{whose}{len(bad)} of {len(index)} images cannot be read and are {outcome}: {path}")


def faces_of_data(
    config: ClusterConfig | CheckConfig, index: ImageIndex, out: Path, *, every: bool = False
) -> tuple[ImageIndex, dict[str, float]]:
    """The faces of DATA, cut into the folder `out` where they are photographs (`cut_faces`), and their quality by
    name; the index as it is, and nothing, where the weights know no faces or --faces is off."""
    weights = open_weights(config.weights)
    finder = face_finder(
        config.faces,
        pictures=expected_pictures(weights.config),
        detector=config.detector,
        min_quality=config.min_quality,
        size=weights.crop_side,
    )
    if finder is None:
        return index, {}
    options = AlignOptions(
        size=finder.options.size,
        given=finder.options.given,
        detector=config.detector,
        min_quality=config.min_quality,
    )
    found = cut_faces(index, out, options, every=every, workers=config.workers)
    say(*filter(None, [found.text()]))
    return found.index, found.quality


def embed_images(
    config: DataConfig | EvalConfig,
    embedder: Network,
    index: ImageIndex,
    *,
    outcome: str = "left out",
    of: str = "",
    needed: Sequence[int] = (),
) -> Embedded:
    """Embed every readable image; the others are listed in the out folder. `of`: which set, "" for the first.

    Raises DataError where one of the `needed` rows, which pairs name, cannot be read, or more than --max-bad allows."""
    embedded = embed_index(
        embedder,
        index,
        batch_size=config.batch_size,
        workers=pick_workers(config.workers),
        flip=config.flip,
        progress=f"embedding {of}".rstrip() if progress_shown() else "",
    )
    named = set(needed)
    broken = [f"{index.name(row)} ({reason})" for row, reason in embedded.bad if row in named]
    if broken:
        raise DataError(
            f"{len(broken)} of {len(named)} images that the pairs name cannot be read: {first_few(broken, 10)}; "
            "mend the images or take their pairs out"
        )
    path = bad_images_of(config.out, of)
    list_bad(index, embedded.bad, path, max_bad=config.max_bad, outcome=outcome, of=of)
    return embedded


def embed_data(config: DataConfig, index: ImageIndex, weights: Weights | None = None) -> EmbeddingTable:
    """The table of DATA, which goes into the out folder, as does the list of bad images."""
    config.out.mkdir(parents=True, exist_ok=True)
    weights = weights or open_weights(config.weights)
    table = embed_images(config, weights.load(config.device), index).table
    table.save(config.out / "embeddings.npz")
    return table
