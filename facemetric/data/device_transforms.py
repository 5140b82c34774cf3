"""The augmentations of transforms.py for a whole batch, on the device, by the numbers that the loader drew.

Crop, scaling and blur mix the pixels of a line, then those of a column: a matrix for each picture, of the weights that
PIL has. The colours of a picture are a matrix and a shift. Each step ends in whole numbers, as PIL's do, so that the
pixels are those of the CPU but for rounding. No step waits for the device.

Shapes: B batch, H height, W width of the picture; O pixels of a line to make, I those it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from facemetric.data.images import Preprocess, upload
from facemetric.data.loader import Batch
from facemetric.data.transforms import LUMA, Drawn

Numbers = dict[str, Tensor]  # (B,) each, by the names of Drawn
Kernel = Callable[[Tensor], Tensor]
BICUBIC = -0.5  # PIL's a
BOXES = 3  # of PIL's Gaussian blur
LANCZOS = 3  # lobes


def pixels_on(batch: Batch, pre: Preprocess, device: torch.device) -> Tensor:
    """A batch's pixels, uint8 (B, H, W, 3), on the device, with the augmentations that were left for it."""
    images = upload(batch.images, device)
    if batch.later is None or not len(batch.later):
        return images
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return augment(images, batch.later, upload(batch.later, device), pre.interpolation)


def augment(images_BHWC: Tensor, host_BN: Tensor, numbers_BN: Tensor, interpolation: str) -> Tensor:
    """uint8 (B, H, W, 3), varied. The numbers, columns of `Drawn`, lie on both sides: the host leaves out a step that
    no picture of the batch takes."""
    host, drawn = (
        dict(zip(Drawn._fields, numbers.unbind(1), strict=True)) for numbers in (host_BN, numbers_BN)
    )
    x = images_BHWC.float()
    H, W = x.shape[1:3]
    if bool(((host["right"] - host["left"] < W) | (host["lower"] - host["upper"] < H)).any()):
        x = crop(x, drawn, KERNELS[interpolation])
    if bool((host["small_width"] > 0).any()):
        x = low_resolution(x, drawn)
    if bool(((host["brightness"] != 1) | (host["contrast"] != 1) | (host["saturation"] != 1)).any()):
        x = recolour(x, drawn)
    if bool((host["grey"] > 0).any()):
        x = torch.where(of_pictures(drawn["grey"]) > 0, whole(luma(x)), x)
    if bool((host["radius"] > 0).any()):
        largest = float(host["radius"].max())
        x = separable(x, *(box_weights(drawn["radius"], largest, size) for size in (W, H)))
    if bool((host["flip"] > 0).any()):
        x = torch.where(of_pictures(drawn["flip"]) > 0, x.flip(2), x)
    return x.to(torch.uint8)


def whole(values: Tensor) -> Tensor:
    """Rounded to 0..255."""
    return values.add(0.5).floor().clamp(0, 255)


def of_pictures(values_B: Tensor) -> Tensor:
    """One number a picture, beside (B, H, W, 3)."""
    return values_B[:, None, None, None]


def luma(x_BHWC: Tensor) -> Tensor:
    """(B, H, W, 1)."""
    red, green, blue = (part * x_BHWC.narrow(3, i, 1) for i, part in enumerate(LUMA))
    return red + green + blue


def crop(x_BHWC: Tensor, drawn: Numbers, kernel: Kernel) -> Tensor:
    """A part of each picture, as large as the picture was."""
    matrices = []
    parts = ((drawn["left"], drawn["right"]), (drawn["upper"], drawn["lower"]))
    for side, part in zip(x_BHWC.shape[2:0:-1], parts, strict=True):
        full_B = torch.full_like(drawn["left"], side)
        matrices.append(weights(part, full_B, full_B, side, kernel))
    return separable(x_BHWC, *matrices)


def recolour(x_BHWC: Tensor, drawn: Numbers) -> Tensor:
    """As transforms.recolour."""
    brightness, contrast, saturation = map(
        of_pictures, (drawn["brightness"], drawn["contrast"], drawn["saturation"])
    )
    mean = luma(whole(x_BHWC.mean((1, 2), keepdim=True)))
    own = saturation * x_BHWC + (1 - saturation) * luma(x_BHWC)
    return whole(brightness * (contrast * own + (1 - contrast) * mean))


def low_resolution(x_BHWC: Tensor, drawn: Numbers) -> Tensor:
    """As transforms.low_resolution: the small picture lies in a corner of the large one's place."""
    steps = []
    for side, small_B in zip(
        x_BHWC.shape[2:0:-1], (drawn["small_width"], drawn["small_height"]), strict=True
    ):
        full_B = torch.full_like(small_B, side)
        small_B = torch.where(small_B > 0, small_B, full_B)
        down = weights((0 * full_B, full_B), full_B, small_B, side, either(drawn["down"]))
        up = weights((0 * full_B, small_B), small_B, full_B, side, either(drawn["up"]))
        steps.append((down, up))
    (down_lines, up_lines), (down_columns, up_columns) = steps
    return separable(separable(x_BHWC, down_lines, down_columns), up_lines, up_columns)


def separable(x_BHWC: Tensor, lines_BWW: Tensor, columns_BHH: Tensor) -> Tensor:
    """The pixels of each line mixed by its picture's first matrix, then those of each column by the second."""
    B, H, W, C = x_BHWC.shape
    turned = x_BHWC.transpose(1, 2).reshape(B, W, H * C)
    mixed = whole(lines_BWW @ turned).view(B, W, H, C).transpose(1, 2)
    return whole(columns_BHH @ mixed.reshape(B, H, W * C)).view(B, H, W, C)


def weights(
    part: tuple[Tensor, Tensor], source_B: Tensor, target_B: Tensor, size: int, kernel: Kernel
) -> Tensor:
    """(B, size, size): PIL's weights that scale a part (begin, end) of lines of `source` pixels to `target` pixels.

    The kernel grows with the scale, so that every pixel counts where a picture becomes smaller; it reaches beyond the
    part, not beyond the line. Lines and columns that are too many are 0."""
    begin_B, end_B = part
    scale_B11 = ((end_B - begin_B) / target_B)[:, None, None]
    place = torch.arange(size, device=begin_B.device) + 0.5
    centre_BO1 = begin_B[:, None, None] + scale_B11 * place[:, None]
    weight_BOI = kernel((place - centre_BO1) / scale_B11.clamp_min(1))
    weight_BOI = weight_BOI * (place < source_B[:, None, None])
    return weight_BOI / weight_BOI.sum(2, keepdim=True).where(
        place[:, None] < target_B[:, None, None], math.inf
    )


def box_weights(radius_B: Tensor, largest: float, size: int) -> Tensor:
    """(B, size, size): PIL's Gaussian blur, three boxes of one variance with a last pixel that counts in part.

    Beyond the edge lies the last pixel again. `largest` of the radii, pixels, bounds their reach. Source: Gwosdek et
    al. 2011, "Theoretical foundations of Gaussian convolution by extended box filtering"."""
    variance_B = radius_B.square() / BOXES
    inner_B = ((12 * variance_B + 1).sqrt() - 1).div(2).floor()
    part_B = (2 * inner_B + 1) * (inner_B * (inner_B + 1) - 3 * variance_B)
    half_B11 = (inner_B + part_B / (6 * (variance_B - (inner_B + 1).square())))[:, None, None]
    reach = math.ceil(2 * largest) + 1
    place = torch.arange(-reach, size + reach, device=radius_B.device)
    apart = (place - place[reach : reach + size, None]).abs()
    weight = (half_B11 + 1 - apart).clamp(0, 1) / (2 * half_B11 + 1)
    box_BII = weight[:, :, reach : reach + size].clone()
    box_BII[:, :, 0] += weight[:, :, :reach].sum(2)
    box_BII[:, :, -1] += weight[:, :, reach + size :].sum(2)
    return box_BII @ box_BII @ box_BII


def nearest(offset: Tensor) -> Tensor:
    """The one pixel that the place lies in."""
    return ((offset > -0.5) & (offset <= 0.5)).float()


def bilinear(offset: Tensor) -> Tensor:
    """A triangle of 1 to both sides."""
    return (1 - offset.abs()).clamp_min(0)


def bicubic(offset: Tensor) -> Tensor:
    """Keys' cubic of 2 to both sides."""
    x, a = offset.abs(), BICUBIC
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, 0))


def lanczos(offset: Tensor) -> Tensor:
    """A windowed sinc of LANCZOS to both sides."""
    return torch.where(offset.abs() < LANCZOS, torch.sinc(offset) * torch.sinc(offset / LANCZOS), 0)


def either(filter_B: Tensor) -> Kernel:
    """Bilinear or bicubic, as each picture has drawn."""
    cubic = (filter_B == Image.Resampling.BICUBIC)[:, None, None]
    return lambda offset: torch.where(cubic, bicubic(offset), bilinear(offset))


KERNELS: dict[str, Kernel] = {
    "nearest": nearest,
    "bilinear": bilinear,
    "bicubic": bicubic,
    "lanczos": lanczos,
}
