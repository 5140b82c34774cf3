"""Pictures as users have them, turned into what the network sees.

Shapes: N pictures, H height, W width. Pixels are uint8 RGB.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from facemetric.data.eval_transform import Transform, eval_transform
from facemetric.data.images import FORMATS, ORIENTATION, BadImage, Preprocess, decode, normalise, upright_rgb
from facemetric.errors import DataError
from facemetric.faces.template import SIDE

if TYPE_CHECKING:
    from torch import Tensor

    from facemetric.faces.crops import FacesFound
    from facemetric.faces.finder import FaceFinder

Picture: TypeAlias = "str | Path | Image.Image | npt.NDArray[np.uint8] | Tensor"
"""A file, a PIL image, a uint8 array (H, W, 3) or (H, W), or a uint8 tensor (3, H, W) or (1, H, W)."""


class ImageTransform:
    """PIL image -> normalised float32 tensor (3, H, W): the pixels that evaluation and validation see.

    Use it as any transform of torchvision, such as `ImageFolder(folder, transform=embedder.transform)`; pictures are
    turned upright, cropped and scaled as `preprocess` says. `pixels` stops before the normalisation."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess
        self._cut: Transform = eval_transform(preprocess)

    def __call__(self, image: Image.Image) -> Tensor:
        import torch

        pixels_1HWC = torch.from_numpy(self.pixels(image)[None])
        return normalise(pixels_1HWC, self.preprocess, "cpu")[0]

    def pixels(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """The same as uint8 (H, W, 3), before the normalisation."""
        return np.array(self._cut(upright_rgb(image)))

    @property
    def enough(self) -> int:
        """The shorter side that a JPEG may be decoded at without a loss."""
        return self._cut.enough

    def __repr__(self) -> str:
        height, width = self.preprocess.size
        crop = f", crop={self.preprocess.crop}" if any(self.preprocess.crop) else ""
        return f"ImageTransform({width} x {height} pixels{crop}, {self.preprocess.interpolation})"


def crop_side(preprocess: Preprocess) -> int:
    """Side in pixels of the crops to cut from photographs for a network: 112, or what it sees where that is more.

    One that learned on crops of 112 pixels sees up to 168, as it cuts and scales; beyond, it learned on larger ones."""
    (height, width), (left, top, right, bottom) = preprocess.size, preprocess.crop
    seen = max(math.ceil(width / (1 - left - right)), math.ceil(height / (1 - top - bottom)))
    return SIDE if seen <= 1.5 * SIDE else seen


def is_tensor(thing: Any) -> bool:
    """Whether it is a tensor of torch, which is not imported for that."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.Tensor)


def is_pixels(thing: Any) -> bool:
    """Whether it is an array or a tensor."""
    return isinstance(thing, np.ndarray) or is_tensor(thing)


def pictures_in(pictures: Any) -> Iterable[Any]:
    """One picture, a batch (array NHWC, tensor NCHW) or several pictures, as pictures to go through."""
    if isinstance(pictures, (str, Path, Image.Image)):
        return [pictures]
    if is_pixels(pictures):
        if pictures.ndim == 4:
            return pictures
        if pictures.ndim in (2, 3):
            return [pictures]
        raise DataError(
            f"pictures are {_in_words(pictures)}; needed is an array (N, H, W, 3) or (H, W, 3), or a tensor "
            "(N, 3, H, W) or (3, H, W)"
        )
    if not isinstance(pictures, Iterable):
        raise DataError(f"pictures are {_in_words(pictures)}; needed is a list of {KINDS}")
    return pictures


KINDS = "paths, PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W)"


def read_picture(picture: Any, name: str, *, enough: int = 0) -> Image.Image:
    """A picture as an upright RGB image; `name` is its name in messages, `enough` is as for `decode`.

    Raises DataError where it is no picture: a file that is missing or broken, pixels of another type or shape."""
    try:
        if isinstance(picture, (str, Path)):
            name = str(picture)
            return decode(Path(picture).read_bytes(), enough=enough)
        if isinstance(picture, Image.Image):
            return upright_rgb(picture)
        return Image.fromarray(_pixels_of(picture, name))
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; give an image") from error
    except IsADirectoryError as error:
        raise DataError(
            f"{name} is a folder; give image files, or a list such as sorted(Path({name!r}).iterdir())"
        ) from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}; give an image") from error
    except (BadImage, ValueError) as error:  # a name with a zero byte is a ValueError
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} cannot be read: {error}; give an image") from error


def picture_size(picture: Any) -> tuple[int, int]:
    """(width, height) of a picture that `read_picture` takes, upright; of a file only the header is read."""
    if isinstance(picture, (str, Path)):
        try:
            with Image.open(picture, formats=FORMATS) as image:
                return picture_size(image)
        except UnidentifiedImageError:  # a photograph of a phone
            return decode(Path(picture).read_bytes()).size
    if isinstance(picture, Image.Image):
        turned = picture.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
        return picture.size[::-1] if turned else picture.size
    height, width = picture.shape[-2:] if is_tensor(picture) else picture.shape[:2]
    return width, height


def _pixels_of(picture: Any, name: str) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, 3) of an array (H, W, 3) or (H, W), or of a tensor (3, H, W) or (1, H, W)."""
    if not is_pixels(picture):
        raise DataError(f"{name} is {_in_words(picture)}; needed are {KINDS}")
    if str(picture.dtype).removeprefix("torch.") != "uint8":
        raise DataError(
            f"{name} is {_in_words(picture)}; needed are pixels of 0..255 as uint8{_remedy(picture)}"
        )
    if is_tensor(picture):
        if picture.ndim != 3 or picture.shape[0] not in (1, 3):
            hint = "; permute(2, 0, 1) brings the colours first" if picture.shape[-1:] == (3,) else ""
            raise DataError(f"{name} is {_in_words(picture)}; needed is (3, H, W){hint}")
        array = picture.detach().cpu().permute(1, 2, 0).numpy()
        array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array
    else:
        array = np.stack([picture] * 3, axis=2) if picture.ndim == 2 else picture
        if array.ndim != 3 or array.shape[2] != 3:
            hint = "; transpose(1, 2, 0) brings the colours last" if array.shape[:1] == (3,) else ""
            raise DataError(f"{name} is {_in_words(picture)}; needed is (H, W, 3){hint}")
    if 0 in array.shape:
        raise DataError(f"{name} is {_in_words(picture)}, which holds no pixel; give another")
    return np.ascontiguousarray(array)


def _remedy(picture: Any) -> str:
    """How to make uint8 of pixels of another type."""
    isfloat = "float" in str(picture.dtype)
    cast = ".to(torch.uint8)" if is_tensor(picture) else ".astype('uint8')"
    if isfloat and 0 not in picture.shape and float(picture.min()) >= 0 and float(picture.max()) <= 1:
        return f": (255 * x).round(){cast} makes them of 0..1"
    if isfloat:
        return ", before any normalisation; a batch that is normalised already goes to embedder(batch)"
    return f": {cast.removeprefix('.')} makes them"


def _in_words(picture: Any) -> str:
    """What came: a float32 tensor of shape (3, 4, 4) with values of 0..1."""
    if not is_pixels(picture):
        return f"a {type(picture).__name__}"
    kind = "tensor" if is_tensor(picture) else "array"
    dtype = str(picture.dtype).removeprefix("torch.")
    words = f"a {dtype} {kind} of shape {tuple(picture.shape)}"
    if "float" in dtype and 0 not in picture.shape:
        words += f" with values of {float(picture.min()):.3g}..{float(picture.max()):.3g}"
    return words


def crops_of(pictures: Any, finder: FaceFinder | None, *, enough: int = 0) -> Iterator[Image.Image]:
    """The most prominent face of each picture, cut to the template; a crop, and without a finder any picture, as it is.

    Raises DataError for a picture without a face, with its name and the reason."""
    if finder is None:
        for number, picture in enumerate(pictures_in(pictures)):
            yield read_picture(picture, f"picture {number}", enough=enough)
        return
    for number, (picture, found) in enumerate(faces_of(pictures, finder)):
        name = picture_name(picture, number)
        if found.missing is not None:
            raise DataError(f"{name}: {found.missing.reason}; give a photograph with a face, or faces='off'")
        face = found.take()
        # A crop is read as it is read without a finder, to the same bits.
        yield read_picture(picture, name, enough=enough) if face.was_crop else face.crop


def faces_of(
    pictures: Any, finder: FaceFinder, names: Sequence[str] = ()
) -> Iterator[tuple[Any, FacesFound]]:
    """Each picture with its faces, or with why there are none; `names` of pictures in messages.

    Raises DataError where one cannot be read."""
    waiting: deque[Any] = deque()

    def name_of(picture: Any, number: int) -> str:
        return names[number] if names else picture_name(picture, number)

    def readable() -> Iterator[Any]:
        for number, picture in enumerate(pictures_in(pictures)):
            waiting.append(picture)
            of_file = isinstance(picture, (str, Path))
            yield picture if of_file else read_picture(picture, name_of(picture, number))

    for number, found in enumerate(finder(readable())):
        picture = waiting.popleft()
        if found.missing is not None and found.missing.unreadable:
            name = name_of(picture, number)
            if not Path(picture).is_file():
                read_picture(picture, name)  # says so in its own words
            raise DataError(f"{name} cannot be read: {found.missing.reason}; give an image")
        yield picture, found


def picture_name(picture: Any, number: int) -> str:
    """A picture's name in messages: its path, or its place."""
    return str(picture) if isinstance(picture, (str, Path)) else f"picture {number}"


def batches_of(
    pictures: Any, transform: ImageTransform, batch_size: int, finder: FaceFinder | None = None
) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 (B, H, W, 3) at a time, so that memory holds `batch_size` pictures at the network's size and no more."""
    batch = []
    for image in crops_of(pictures, finder, enough=transform.enough):
        batch.append(transform.pixels(image))
        if len(batch) == batch_size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)
