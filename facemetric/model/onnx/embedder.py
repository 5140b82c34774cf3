"""An ONNX file at work: pictures to unit vectors, by ONNX Runtime on the CPU. Nothing here imports torch.

A file that facemetric exported says in its metadata what it takes. Of anybody's model, a TOML file beside it says so
(`model.toml` for `model.onnx`); each line may be left out, what is left out is guessed, and the guess is told:

    size = [112, 112]          # height and width of the input, pixels
    color = "bgr"              # order of the colours; guessed: rgb
    mean = [0.5, 0.5, 0.5]     # of pixels of 0..1; guessed: 0.5
    std = [0.5, 0.5, 0.5]      # guessed: 0.5, so that pixels come as -1..1
    pictures = "faces"         # what it is for: faces cut to the template, or "" for other pictures
    crop = [0.0, 0.0, 0.0, 0.0]  # share cut off at left, top, right, bottom before
    interpolation = "bilinear"
    output = "embedding"       # which output is the vector, where several could be; guessed: the first

A network that takes pixels of 0..255 as they are has mean 0 and std 0.00392156862745098, which is 1 / 255.

Shapes: B batch, H height, W width, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.faces.finder import FaceFinder, Faces, face_finder
from facemetric.files import file_hash
from facemetric.model.onnx.colour_check import colours_suspected, range_suspected
from facemetric.model.pictures import ImageTransform, batches_of, crop_side

if TYPE_CHECKING:
    from facemetric.model.pictures import Picture

METADATA = "facemetric"  # key of the JSON text in the file's metadata
OUTPUT = "embeddings"  # the output's name in files of ours
PIECE = 8  # images in the network at once: what they need fits into the cache
GUESSED_SIDE = 112  # of an input whose size the file leaves open
TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
KEYS_BESIDE = ("size", "color", "mean", "std", "crop", "interpolation", "pictures", "output")


def required(name: str) -> Any:
    """The module of a package of an extra. Raises ConfigError where it is missing."""
    try:
        return __import__(name)
    except ImportError as error:
        wanted = "openvino" if name == "openvino" else "'facemetric[onnx]'"
        raise ConfigError(f"the package {name} is missing; pip install {wanted}") from error


class OnnxInput(NamedTuple):
    """What a file takes: its input's name and type, whether colours come last, and sizes; 0 where they are open."""

    name: str
    dtype: type
    channels_last: bool
    batch: int
    height: int
    width: int


class OnnxEmbedder:
    """An ONNX file that embeds as `Embedder` does: `embed(pictures)` gives unit vectors, by ONNX Runtime on the CPU.

    `metadata` is what an export of ours wrote, {} for a file from elsewhere; `preprocess` is what a picture goes
    through; `notes` say what was guessed. `pictures` and `fingerprint` as in `Embedder`; the fingerprint of a file
    from elsewhere is the SHA-256 of it and of how it is used, since other colours give other vectors. `threads`: 0
    takes OMP_NUM_THREADS, or every core. Raises ConfigError for a file that is no ONNX model, or none that turns
    pictures into vectors."""

    def __init__(self, file: Path | str, *, threads: int = 0) -> None:
        runtime = required("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.log_severity_level = 3
        # Threads that wait for work by spinning take the cores from those that read and look for faces.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.file = Path(file)
        try:
            self.session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own kinds, one for each way a file can be wrong
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"{file} is no ONNX model that can be run ({reason}); export it again"
            ) from error
        self.input = input_of(self.session, self.file)
        self.metadata = metadata_of(self.session, self.file)
        self.guessed: list[str] = []
        self.pictures = str(self.metadata.get("pictures", "faces"))
        self.stated_output = ""
        self.preprocess = self._preprocess()
        self.output, self.embedding_size = self._find_output()
        self.fingerprint = str(self.metadata.get("weights_sha256") or "") or self._own_fingerprint()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was guessed of a file from elsewhere; empty where nothing was."""
        if not self.guessed:
            return ()
        beside = self.file.with_suffix(".toml").name
        return (
            f"{self.file}: guessed that it {', and that it '.join(self.guessed)}; {beside} beside it may say otherwise",
        )

    @property
    def side(self) -> int:
        """Height of the pictures that the network takes, pixels."""
        return self.preprocess.size[0]

    @property
    def transform(self) -> ImageTransform:
        """What turns a PIL image into the pixels that the network takes (`transform.pixels`)."""
        return ImageTransform(self.preprocess)

    def __repr__(self) -> str:
        height, width = self.preprocess.size
        return f"OnnxEmbedder({str(self.file)!r}, {width} x {height} pixels -> {self.embedding_size} numbers)"

    def embed(
        self,
        images: Picture | Iterable[Picture],
        *,
        flip: bool = False,
        batch_size: int = 32,
        faces: Faces | FaceFinder = "off",
    ) -> npt.NDArray[np.float32]:
        """Unit embeddings (N, D), float32, of N pictures, in their order, as `Embedder.embed` gives them; `faces` says
        whether faces are looked for. Raises DataError for what is no picture."""
        finder = self.finder(faces)
        emb_BD = [
            self.embed_pixels(pixels, flip=flip)
            for pixels in batches_of(images, self.transform, batch_size, finder)
        ]
        if not emb_BD:
            raise DataError("no images came; needed is one or more")
        return np.concatenate(emb_BD)

    def finder(
        self, faces: Faces | FaceFinder = "auto", *, detector: str = "", min_quality: float = 0.0
    ) -> FaceFinder | None:
        """What finds the faces for this file, None where pictures are embedded as they are; as `Embedder.finder`."""
        size, pictures = crop_side(self.preprocess), self.pictures
        return face_finder(faces, pictures=pictures, detector=detector, min_quality=min_quality, size=size)

    def embed_pixels(
        self, pixels_BHWC: npt.NDArray[np.uint8], *, flip: bool = False
    ) -> npt.NDArray[np.float32]:
        """Unit embeddings (B, D) of RGB pixels of the network's own size, which `transform.pixels` gives."""
        emb_BD = self._unit_rows(pixels_BHWC)
        if flip and not self.metadata.get("flip"):  # else the file itself averages
            emb_BD = _unit(emb_BD + self._unit_rows(pixels_BHWC[:, :, ::-1]), self.file)
        return emb_BD

    def suspicions(self, pixels_BHWC: npt.NDArray[np.uint8]) -> tuple[str, ...]:
        """What some crops (`transform.pixels`) let suspect of a file from elsewhere, and what to change: pixels of
        another range, or else colours the wrong way round. Empty for files of ours."""
        if self.metadata:
            return ()
        beside = f"{self.file.with_suffix('.toml').name} beside it"
        alike = range_suspected(self.embed_pixels, pixels_BHWC)
        if alike:
            return (f"{self.file}: {alike}; write mean and std into {beside}, as its author says",)
        colours = colours_suspected(self.embed_pixels, pixels_BHWC)
        if not colours:
            return ()
        order = "rgb" if self.preprocess.color == "bgr" else "bgr"
        return (f'{self.file}: {colours}; write color = "{order}" into {beside}, if its author says so',)

    def _own_fingerprint(self) -> str:
        used = json.dumps([file_hash(self.file), self.preprocess.to_dict(), self.output])
        return hashlib.sha256(used.encode()).hexdigest()

    def _unit_rows(self, pixels_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        if not len(pixels_BHWC):
            return np.zeros((0, self.embedding_size), np.float32)
        piece = self.input.batch or PIECE
        found = [self._run(pixels_BHWC[at : at + piece]) for at in range(0, len(pixels_BHWC), piece)]
        return _unit(np.concatenate(found), self.file)

    def _run(self, pixels_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Vectors (B, D) of at most one piece."""
        count = len(pixels_BHWC)
        if count < self.input.batch:  # a file of one batch size alone
            pixels_BHWC = np.concatenate([pixels_BHWC, *[pixels_BHWC[-1:]] * (self.input.batch - count)])
        (vectors,) = self._outputs(self._seen(pixels_BHWC), [self.output])
        return np.asarray(vectors[:count], np.float32).reshape(count, -1)

    def _seen(self, pixels_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        """Pixels as the file takes them."""
        seen: npt.NDArray[Any] = pixels_BHWC
        if self.input.dtype is not np.uint8:
            pre = self.preprocess
            seen = seen[..., ::-1] if pre.color == "bgr" else seen
            std, mean = np.array(pre.std), np.array(pre.mean)
            seen = seen * (1 / (255 * std)).astype(np.float32) - (mean / std).astype(np.float32)
            seen = seen.astype(self.input.dtype)
        return np.ascontiguousarray(seen if self.input.channels_last else seen.transpose(0, 3, 1, 2))

    def _outputs(self, seen: npt.NDArray[Any], names: list[str]) -> list[npt.NDArray[Any]]:
        """What the file gives under these names."""
        try:
            return self.session.run(names, {self.input.name: seen})
        except Exception as error:  # as in __init__
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"{self.file} cannot take pictures of {seen.dtype} {seen.shape} ({reason}); say in "
                f"{self.file.with_suffix('.toml').name} beside it which size it takes"
            ) from error

    def _find_output(self) -> tuple[str, int]:
        """Name and length of the vectors: the output that gives one for each of some black pictures."""
        count = self.input.batch or 2
        names = [each.name for each in self.session.get_outputs()]
        found = self._outputs(self._seen(np.zeros((count, *self.preprocess.size, 3), np.uint8)), names)
        fits = {
            name: one.shape[1] for name, one in zip(names, found, strict=True) if is_embedding(one, count)
        }
        if not fits:
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in zip(names, found, strict=True))
            raise ConfigError(
                f"{self.file} gives {shapes} for {count} pictures; needed is one vector for each: it is no model that "
                "embeds pictures"
            )
        if self.stated_output and self.stated_output not in fits:
            beside = self.file.with_suffix(".toml")
            raise ConfigError(
                f"{beside}: output is {self.stated_output!r}, but the vectors of {self.file} are {_listed(fits)}"
            )
        name = self.stated_output or (OUTPUT if OUTPUT in fits else next(iter(fits)))
        if len(fits) > 1 and not (self.stated_output or self.metadata):
            others = _listed({other: size for other, size in fits.items() if other != name})
            self.guessed.append(f"gives the embedding as {name!r} of {fits[name]} numbers (not as {others})")
        return name, fits[name]

    def _preprocess(self) -> Preprocess:
        """From the metadata, else from the file beside and guesses, which are noted."""
        taken = self.input
        size = (taken.height or GUESSED_SIDE, taken.width or taken.height or GUESSED_SIDE)
        if "preprocess" in self.metadata:
            return Preprocess.from_dict(self.metadata["preprocess"])
        if self.metadata and taken.dtype is np.uint8:  # crops as they are: the preprocessing is in the file
            return Preprocess(size=size)
        beside = self.file.with_suffix(".toml")
        stated = read_beside(beside)
        self.pictures = str(stated.pop("pictures", self.pictures))
        self.stated_output = str(stated.pop("output", ""))
        pre = replace(Preprocess(size=size), **stated) if stated else Preprocess(size=size)
        if (taken.height, taken.width) != (0, 0) and pre.size != size:
            raise ConfigError(f"{beside}: size is {list(pre.size)}, but {self.file} takes {list(size)}")
        guessed = [f"{size[1]} x {size[0]} pixels"] if "size" not in stated and not taken.height else []
        guessed += ["colours in the order red, green, blue"] if "color" not in stated else []
        if taken.dtype is not np.uint8 and not {"mean", "std"} <= set(stated):
            guessed.append(f"pixels of 0..1 less {pre.mean[0]:g}, divided by {pre.std[0]:g}")
        if guessed:
            self.guessed.append(f"takes {', '.join(guessed)}")
        return pre


def cores() -> int:
    """Threads that this process may use: OMP_NUM_THREADS, which torchrun sets, or every core it has."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def input_of(session: Any, file: Path) -> OnnxInput:
    """The one input of pictures. ConfigError where it is something else."""
    inputs = session.get_inputs()
    shape = [size if isinstance(size, int) else 0 for size in inputs[0].shape] if len(inputs) == 1 else []
    if len(shape) == 4 and 3 in (shape[1], shape[3]) and inputs[0].type in TYPES:
        last = shape[3] == 3 and shape[1] != 3
        height, width = shape[1:3] if last else shape[2:]
        return OnnxInput(inputs[0].name, TYPES[inputs[0].type], last, shape[0], height, width)
    found = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs)
    raise ConfigError(
        f"{file} takes {found}; needed is one input of pictures, (batch, height, width, 3) or (batch, 3, height, "
        "width), in uint8 or float32: it is no model that embeds pictures"
    )


def metadata_of(session: Any, file: Path) -> dict[str, Any]:
    """What an export of ours wrote into a file; {} for a file from elsewhere."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{file}: its metadata {METADATA!r} is {text!r:.60}, which no export of ours wrote; export it again"
        )
    return found


def read_beside(file: Path) -> dict[str, Any]:
    """What the TOML file beside a model says; {} where there is none."""
    if not file.is_file():
        return {}
    try:
        stated = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from error
    for name in stated:
        if name not in KEYS_BESIDE:
            raise ConfigError(f"{file}: unknown key {name!r}{did_you_mean(name, KEYS_BESIDE)}")
    if stated.get("pictures", "faces") not in ("", "faces"):
        raise ConfigError(f'{file}: pictures is {stated["pictures"]!r}; "faces", or "" for other pictures')
    return {name: tuple(value) if isinstance(value, list) else value for name, value in stated.items()}


def _listed(vectors: Mapping[str, int]) -> str:
    """Names of outputs with their lengths, in words."""
    return ", ".join(f"{name!r} of {size}" for name, size in vectors.items())


def is_embedding(values: Any, count: int) -> bool:
    """Whether an output is a vector for each picture; trailing sides of one pixel do not count."""
    return values.ndim >= 2 and len(values) == count and values.size == count * values.shape[1] > count


def _unit(rows_BD: npt.NDArray[np.float32], file: Path) -> npt.NDArray[np.float32]:
    length_B1 = np.sqrt(np.einsum("bd,bd->b", rows_BD, rows_BD, dtype=np.float64))[:, None]
    if not (np.isfinite(length_B1) & (length_B1 > 0)).all():
        raise DataError(
            f"{file} gave an embedding that is zero or not finite; its pixels may be of another range"
        )
    return (rows_BD / length_B1).astype(np.float32)
