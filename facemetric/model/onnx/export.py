"""An embedder as one ONNX file that takes crops as they are: uint8 pixels in, unit vectors out.

The preprocessing is part of the graph: cut, resize, normalise, and the mirror image's average where asked for. Cut and
resize are two matrix products in whole numbers, with the very weights and rounding of pillow's resampling, so that an
exported model sees the same pixels as ours.

Shapes: B batch, S side of the crop, H and W the picture that the network sees, D embedding.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from facemetric.data.images import Preprocess
from facemetric.data.transforms import eval_transform
from facemetric.errors import ConfigError
from facemetric.files import write_bytes_whole, write_whole
from facemetric.model.embedder import Embedder
from facemetric.model.onnx.embedder import METADATA, OUTPUT, OnnxEmbedder, required

__all__ = ["CropEmbedder", "OnnxEmbedder", "export_onnx", "quantize_onnx", "required"]

INPUT = "images"
OPSET = 18
PRECISION = 22  # bits behind the point of pillow's weights for 8-bit pictures


def triangle(x: float) -> float:
    """Pillow's bilinear filter."""
    return max(0.0, 1.0 - abs(x))


def cubic(x: float, a: float = -0.5) -> float:
    """Pillow's bicubic filter. Source: Keys 1981, doi:10.1109/TASSP.1981.1163711."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def lanczos(x: float) -> float:
    """Pillow's Lanczos filter, three lobes."""
    if abs(x) >= 3:
        return 0.0
    return (
        1.0
        if x == 0
        else math.sin(math.pi * x) / (math.pi * x) * math.sin(math.pi * x / 3) / (math.pi * x / 3)
    )


FILTERS: dict[str, tuple[Callable[[float], float], float]] = {  # filter, half its width
    "bilinear": (triangle, 1.0),
    "bicubic": (cubic, 2.0),
    "lanczos": (lanczos, 3.0),
}


def resampling_weights(size: int, out: int, low: float, high: float, name: str) -> npt.NDArray[np.float64]:
    """Weights (out, size), whole multiples of 2 ** -22, with which pillow resizes pixels low..high of a line.

    Raises ConfigError for an interpolation that is no weighted mean (nearest)."""
    if name not in FILTERS:
        raise ConfigError(f"interpolation {name} cannot be exported; needed is one of {', '.join(FILTERS)}")
    weigh, reach = FILTERS[name]
    first_edge, last_edge = np.float32(low), np.float32(high)  # as pillow keeps a box
    step = float(last_edge - first_edge) / out
    scale = max(step, 1.0)
    weights = np.zeros((out, size))
    for i in range(out):
        centre = float(first_edge) + (i + 0.5) * step
        first = max(int(centre - reach * scale + 0.5), 0)
        last = min(int(centre + reach * scale + 0.5), size)
        row = np.array([weigh((x - centre + 0.5) / scale) for x in range(first, last)])
        whole = row / row.sum() * 2**PRECISION
        weights[i, first:last] = np.trunc(whole + np.copysign(0.5, whole)) / 2**PRECISION
    return weights


class Resample(nn.Module):
    """uint8 crops (B, S, S, 3) -> pixels 0..255 (B, 3, H, W), float32, equal to those of `Embedder.transform`."""

    across: Tensor
    down: Tensor

    def __init__(self, pre: Preprocess, side: int) -> None:
        super().__init__()
        left, top, right, bottom = pre.crop
        height, width = pre.size
        self.whole = not any(pre.crop) and pre.size == (side, side)
        for name, out, low, high in (("across", width, left, right), ("down", height, top, bottom)):
            weights = resampling_weights(side, out, low * side, side - high * side, pre.interpolation)
            self.register_buffer(name, torch.from_numpy(weights))
        self.down_first = False
        if not self.whole:
            self.down_first = self.resizes_down_first(pre, side)

    def resizes_down_first(self, pre: Preprocess, side: int) -> bool:
        """Whether the installed pillow shortens the columns before the lines: newer ones do the cheaper pass first,
        and each pass rounds."""
        noise = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
        wanted = torch.tensor(eval_transform(pre)(Image.fromarray(noise[0]))).permute(2, 0, 1).float()
        differ = []
        for self.down_first in (False, True):
            differ.append(int((self(torch.from_numpy(noise))[0] != wanted).sum()))
        return differ[1] < differ[0]

    def forward(self, images_BSSC: Tensor) -> Tensor:
        pixels = images_BSSC.permute(0, 3, 1, 2)
        if self.whole:
            return pixels.float()
        pixels = pixels.double()  # exact: sums of whole numbers below 2 ** 53
        if self.down_first:
            return self.resize_across(self.resize_down(pixels)).float()
        return self.resize_down(self.resize_across(pixels)).float()

    def resize_across(self, pixels_B3YX: Tensor) -> Tensor:
        """Every line to the picture's width, rounded to 0..255."""
        return torch.floor(pixels_B3YX @ self.across.T + 0.5).clamp(0, 255)

    def resize_down(self, pixels_B3YX: Tensor) -> Tensor:
        """Every column to the picture's height, rounded to 0..255."""
        return torch.floor(self.down @ pixels_B3YX + 0.5).clamp(0, 255)


class PixelEmbedder(nn.Module):
    """An embedder behind its normalisation: RGB pixels 0..255 (B, H, W, 3) of the network's own size -> (B, D).

    `flip` embeds the mirror image too and normalises the mean."""

    scale: Tensor
    shift: Tensor

    def __init__(self, embedder: Embedder, *, flip: bool = False) -> None:
        super().__init__()
        pre = embedder.preprocess
        self.embedder, self.flip, self.bgr = embedder, flip, pre.color == "bgr"
        std, mean = torch.tensor(pre.std), torch.tensor(pre.mean)
        self.register_buffer("scale", (1 / (255 * std))[:, None, None])
        self.register_buffer("shift", (-mean / std)[:, None, None])

    def forward(self, pixels_BHWC: Tensor) -> Tensor:
        return self.of_channels_first(pixels_BHWC.permute(0, 3, 1, 2).float())

    def of_channels_first(self, pixels_B3HW: Tensor) -> Tensor:
        """The same from float32 pixels (B, 3, H, W)."""
        pixels = pixels_B3HW.flip(1) if self.bgr else pixels_B3HW
        seen = pixels * self.scale + self.shift
        emb = self.embedder(seen)
        return functional.normalize(emb + self.embedder(seen.flip(3)), dim=1) if self.flip else emb


class CropEmbedder(nn.Module):
    """An embedder behind its preprocessing: uint8 RGB crops (B, S, S, 3) -> unit embeddings (B, D), float32.

    `side` is the crop's side in pixels. `flip` as for PixelEmbedder."""

    def __init__(self, embedder: Embedder, *, side: int = 112, flip: bool = False) -> None:
        super().__init__()
        self.preprocessing = Resample(embedder.preprocess, side)
        self.pixels = PixelEmbedder(embedder, flip=flip)

    def forward(self, images_BSSC: Tensor) -> Tensor:
        return self.pixels.of_channels_first(self.preprocessing(images_BSSC))


def export_onnx(
    file: Path,
    embedder: Embedder,
    *,
    side: int = 112,
    flip: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write an embedder as an ONNX file with a dynamic batch; the file appears whole.

    Input `images`, uint8 (batch, side, side, 3), RGB; output `embeddings`, float32 (batch, D), unit vectors. `metadata`
    goes into the file as JSON under `facemetric`. Raises ConfigError where the packages of the extra are missing, or
    the backbone cannot be exported."""
    model = CropEmbedder(embedder, side=side, flip=flip)
    example = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    proto = onnx_model(model, example, arch=embedder.arch, metadata=metadata or {})
    return write_bytes_whole(file, proto.SerializeToString())


def onnx_model(model: nn.Module, example: Tensor, *, arch: str, metadata: Mapping[str, Any]) -> Any:
    """The checked ONNX model of a network of uint8 pictures, its batch left open. Raises ConfigError as export_onnx."""
    onnx = required("onnx")
    required("onnxscript")
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.eval(),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no common type
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{arch} cannot be exported to ONNX ({reason}); choose other weights") from error
    assert program is not None
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(dict(metadata))
    onnx.checker.check_model(proto)
    return proto


def quantize_onnx(file: Path, out: Path, crops: Iterable[npt.NDArray[np.uint8]]) -> Path:
    """Write `file` with int8 weights and activations, their ranges from batches of real crops.

    Convolutions and matrix products are quantised, a scale for each channel; the preprocessing stays exact. Source:
    Jacob et al. 2018, arXiv:1712.05877."""
    required("onnxruntime")
    from onnxruntime import quantization

    class Crops(quantization.CalibrationDataReader):  # type: ignore[misc]
        """One batch at a time."""

        def __init__(self) -> None:
            self.batches = iter(crops)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    def write(path: Path) -> None:
        prepared = path.with_name(path.name + ".prepared.onnx")
        try:
            quantization.quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(path),
                Crops(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "Gemm"],
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        finally:
            prepared.unlink(missing_ok=True)

    return write_whole(out, write)
