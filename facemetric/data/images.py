"""Bytes to pixels: decode an image of any kind; the network's preprocessing, and normalised batches.

Shapes: B batch, H height, W width. Pixels are uint8 RGB until `normalise`, once a batch, on the device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, features
from PIL.JpegImagePlugin import JpegImageFile

from facemetric.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 64_000_000  # of a decoded picture: 192 MB; below PIL's own warning of a bomb
MAX_JPEG_PIXELS = 256_000_000  # of a JPEG that is decoded smaller: above the 200 megapixels of phones
JPEG_START = b"\xff\xd8\xff"
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")  # no EPS or PDF: those start other programs
# What photographs of phones begin with, HEIC and AVIF.
PHONES = frozenset(b"ftyp" + brand for brand in (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"hevc"))
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class BadImage(Exception):  # noqa: N818 (a finding, not a fault of the program)
    """An image that cannot be used; `reason` goes to the list of bad images, the job goes on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Preprocess:
    """What every image goes through before the network; kept with the weights.

    `size` (H, W) in pixels; `crop` fractions of (width, height, width, height) cut from left, top, right,
    bottom first; the rest is stretched to `size`. `mean` and `std` are per channel of pixels in 0..1, in the
    order of `color` ("rgb" or "bgr").
    """

    size: tuple[int, int] = (112, 112)
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bilinear"
    color: str = "rgb"

    def __post_init__(self) -> None:
        for name, count in (("size", 2), ("crop", 4), ("mean", 3), ("std", 3)):
            value = getattr(self, name)
            if (
                not isinstance(value, list | tuple)
                or [type(v) in (int, float) for v in value] != [True] * count
            ):
                raise ConfigError(f"{name} is {value!r}; it needs {count} numbers")
            object.__setattr__(self, name, tuple(value))
        left, top, right, bottom = self.crop
        if min(self.crop) < 0 or left + right >= 1 or top + bottom >= 1:
            raise ConfigError(
                f"crop is {self.crop}; each fraction is 0 or more, and opposite ones sum to below 1"
            )
        if min(self.size) < 1 or min(self.std) <= 0:
            raise ConfigError(f"size is {self.size} and std {self.std}; both must be above 0")
        if self.interpolation not in INTERPOLATIONS:
            hint = did_you_mean(self.interpolation, INTERPOLATIONS)
            raise ConfigError(f"unknown interpolation {self.interpolation!r}{hint}")
        if self.color not in ("rgb", "bgr"):
            raise ConfigError(f"unknown color {self.color!r}{did_you_mean(self.color, ('rgb', 'bgr'))}")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, numbers and strings, for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preprocess:
        """The reverse of to_dict. ConfigError on a key it does not know; absent keys take their defaults."""
        known = [entry.name for entry in fields(cls)]
        for key in record:
            if key not in known:
                raise ConfigError(f"unknown preprocessing key {key!r}{did_you_mean(key, known)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**values)


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, enough: int = 0) -> Image.Image:
    """An upright RGB picture of the first frame.

    Transparency is laid over white, as a viewer shows it; 16-bit grey keeps its upper 8 bits; CMYK and
    palettes are converted; EXIF rotation is applied. A JPEG is decoded at 1/2, 1/4 or 1/8 where it has more than
    `max_pixels`, and with `enough` > 0 where its shorter side stays at least so many pixels. BadImage where it is
    empty, no image, cut short, or too large: other formats above `max_pixels`, a JPEG above MAX_JPEG_PIXELS. Damage
    inside a JPEG that libjpeg bridges with grey is not noticed.
    """
    if not data:
        raise BadImage("zero bytes")
    if kind := other_kind(data):
        raise BadImage(kind)
    try:
        if data.startswith(JPEG_START):
            image = _jpeg(data, max_pixels, enough)
        elif data[4:12] in PHONES:
            return _of_phone(data, max_pixels)
        else:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_pixels(image, max_pixels, "save it smaller, or as a JPEG")
        image.load()
        return _rgb(_upright(image))
    except BadImage:
        raise
    except MemoryError:
        raise BadImage("needs more memory than there is") from None
    except Exception as error:  # PIL's readers raise what they meet: OSError, SyntaxError, struct.error ...
        raise BadImage(_reason(error)) from None


def other_kind(data: bytes) -> str:
    """What a file is that people take for a photograph, and what to do, from its first 12 bytes; "" for any other."""
    if data[:5] == b"%PDF-":
        return "a PDF document; save its page as a picture"
    if (
        (data[4:8] == b"ftyp" and data[4:12] not in PHONES)
        or data[:4] == b"\x1aE\xdf\xa3"
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
    ):
        return "a video; save a frame of it as a picture"
    return ""


def _jpeg(data: bytes, max_pixels: int, enough: int) -> Image.Image:
    """A JPEG, not yet decoded, at the scale that `decode` promises.

    Not by Image.open, which refuses or warns at the size that is stated: what matters is the size that comes out.
    """
    try:
        image = JpegImageFile(io.BytesIO(data))
    except SyntaxError:
        raise BadImage("no image of a known kind") from None
    _check_pixels(image, MAX_JPEG_PIXELS, "save it smaller")
    width, height = image.size
    wanted = [image.size]  # sizes that the picture may shrink to, but not below
    if min(image.size) >= 2 * enough > 0:
        scale = enough / min(image.size)
        wanted.append((int(width * scale), int(height * scale)))
    divisor = 1
    while divisor < 8 and -(-width // divisor) * -(-height // divisor) > max_pixels:
        divisor *= 2
        wanted.append((max(1, width // divisor), max(1, height // divisor)))
    if len(wanted) > 1:
        image.draft(None, min(wanted))
    _check_pixels(image, max_pixels, "save it smaller")
    return image


def phones_read(ending: str) -> bool:
    """Whether photographs of this ending, .heic, .heif or .avif, can be read: HEIC takes the package pillow-heif."""
    if ending == ".avif":
        return features.check("avif") is True
    return importlib.util.find_spec("pillow_heif") is not None


def _of_phone(data: bytes, max_pixels: int) -> Image.Image:
    """A HEIC or AVIF photograph, upright."""
    if data[8:12] == b"avif":
        if not phones_read(".avif"):
            raise BadImage("an AVIF photograph, which this Pillow does not read; save it as JPEG")
        image = Image.open(io.BytesIO(data), formats=["AVIF"])
        _check_pixels(image, max_pixels, "save it smaller, or as a JPEG")
        return _rgb(_upright(image))
    if not phones_read(".heic"):
        raise BadImage("a HEIC photograph; pip install 'facemetric[heic]', or save it as JPEG")
    photograph = importlib.import_module("pillow_heif").open_heif(io.BytesIO(data))  # which turns it upright
    _check_size(photograph.size, max_pixels, "save it smaller, or as a JPEG")
    return _rgb(photograph.to_pillow())


def _check_pixels(image: Image.Image, most: int, remedy: str) -> None:
    _check_size(image.size, most, remedy)


def _check_size(size: tuple[int, int], most: int, remedy: str) -> None:
    width, height = size
    if width * height > most:
        raise BadImage(f"{width} x {height} pixels, at most {most} are decoded; {remedy}")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "a decompression bomb"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image of a known kind"
    return " ".join(f"cannot be decoded: {error or type(error).__name__}".split())[:200]


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a picture with damaged EXIF is still a picture
        return image
    if method is None:
        return image
    turned = image.transpose(method)
    for name in (
        "exif",
        "xmp",
        "XML:com.adobe.xmp",
    ):  # else it would be turned once more, by whoever asks again
        turned.info.pop(name, None)
    return turned


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # PIL's own conversion clips 16 bits to white.
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage(f"grey values of {grey.min()}..{grey.max()}, needed are 0..65535")
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point pixels, whose range is not known; save it with 8 or 16 bits")
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """An open picture as `decode` gives it: turned upright as EXIF says, in RGB. Raises BadImage as `decode` does."""
    try:
        image.load()
        return _rgb(_upright(image))
    except BadImage:
        raise
    except Exception as error:  # as in decode
        raise BadImage(_reason(error)) from None


def normalise(images_BHWC: torch.Tensor, pre: Preprocess, device: torch.device | str) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) on the device, (x / 255 - mean) / std, in channels_last
    memory.
    """
    import torch  # an exported network has no use for it

    B, H, W, _ = images_BHWC.shape
    device = torch.device(device)
    images_BHWC = upload(images_BHWC, device)
    if pre.color == "bgr":
        images_BHWC = images_BHWC.flip(3)
    # A whole line of pixels at once: loops over three channels take four times as long.
    scale, shift = _scale_and_shift(pre.mean, pre.std, W, device)
    lines = images_BHWC.to(torch.float32).reshape(B, H, W * 3)
    return lines.mul_(scale).add_(shift).view(B, H, W, 3).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(W * 3,) each, kept on the device: made once, not with every batch."""
    import torch

    with torch.inference_mode(False):  # they outlive whoever asks first
        scale = torch.tensor([1 / (255 * s) for s in std]).repeat(width).to(device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).repeat(width).to(device)
    return scale, shift


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device, without waiting: from pinned memory to a CUDA device; as it is where it lies there."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
