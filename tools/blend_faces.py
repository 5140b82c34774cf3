"""Blended faces for a teacher to embed: two aligned crops in one, bent a little.

    python tools/blend_faces.py RUN --count 200000 --seed 1 --out blends.tar
    facemetric embed blends.tar --weights dlib.onnx --faces off --out blends.npz
    facemetric pretrain ... --unlabelled blends=blends.tar --teacher blends=blends.npz

RUN is the folder of a stage one that followed a teacher, or a folder with its config.toml (call this from where the run
was started: its paths may be relative). Its pictures are taken, those of the validation people and those left out are
not. A student soon knows its teacher's answers to tens of thousands of pictures by heart; pictures that are made can be
as many as there is time for. The teacher sees each blend once, not its mirror image: there are other blends for that
time. Sources: mixup
(Zhang et al. 2018, arXiv:1710.09412) and CutMix (Yun et al. 2019, arXiv:1905.04899), with the teacher asked about the
mixture itself (Beyer et al. 2022, arXiv:2106.05237).

Of the pictures 35 % are a mean of two with a weight of 0.3 to 0.7, 40 % take some regions from the one and some from
the other, 25 % are of one; all of these last and half of the others are bent smoothly, by some pixels. Half of the
partners look like the first by the teacher, the other half are drawn. The same RUN and seed give the same pictures with
the same versions of torch, numpy and Pillow.

Shapes: B pictures of a block, N of the training, S side, T teacher's embedding.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from keep_training_images import config_of
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facemetric.config import PretrainConfig
from facemetric.data.images import BadImage, decode
from facemetric.errors import ConfigError, DataError, FacemetricError
from facemetric.files import write_whole
from facemetric.training.run.folder import CONFIG
from facemetric.training.split import read_split
from facemetric.training.tasks.teacher_rows import Joined, Teacher, teacher_rows

BLOCK = 128  # pictures made together
KINDS = {"mean": 0.35, "regions": 0.4, "one": 0.25}
NAMED = 0.75  # share of the pictures that have a name
SOUGHT, ALIKE = 3000, 24  # a partner that looks alike: one of the 24 nearest among 3,000
QUALITY = 90  # of the JPEG files


class Pictures(NamedTuple):
    """What is blended: the images, the teacher's unit vectors (N, T), the person of each, and how often each is
    drawn (N,)."""

    images: Joined
    teacher_NT: np.ndarray
    person: np.ndarray
    chance: np.ndarray

    def pixels(self, rows: np.ndarray, side: int) -> Tensor:
        """Images (B, 3, S, S), float32, 0..255."""
        found = [self._pixels(int(row), side) for row in rows]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()

    def _pixels(self, row: int, side: int) -> np.ndarray:
        try:
            image = decode(self.images.read(row))
        except (BadImage, OSError) as error:
            raise DataError(
                f"{self.images.name(row)}: {error}; mend it, or name it in --leave-out-images of the training"
            ) from error
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image)


def read_pictures(run: Path) -> Pictures:
    """The pictures that a stage one with a teacher learned from. Raises ConfigError for another run, or one that cut
    faces out of photographs, DataError where all pictures show one person."""
    config = config_of(run)
    if not isinstance(config, PretrainConfig) or not config.teacher:
        raise ConfigError(
            f"{run / CONFIG} is not of a stage one with a teacher; name a run of `facemetric pretrain --teacher`"
        )
    split = read_split(config)
    images = Joined(split.train, split.unlabelled)
    nobody = np.flatnonzero(images.identity < 0)
    person = images.identity.astype(np.int64)
    person[nobody] = len(split.train.identities) + np.arange(len(nobody))
    if len(np.unique(person)) < 2:
        raise DataError(f"{run / CONFIG}: all pictures show one person; a blend needs two")
    # A person with many pictures is drawn more often, by the root of their number.
    chance = 1 / np.sqrt(np.bincount(person)[person])
    share = NAMED if len(nobody) else 1.0
    chance[: images.first] *= share / chance[: images.first].sum()
    chance[nobody] *= (1 - share) / max(chance[nobody].sum(), 1e-12)
    return Pictures(
        images, teacher_rows(Teacher(config.teacher, config.out.parent / "teacher"), images), person, chance
    )


def draw_pairs(pictures: Pictures, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows (B,) of first pictures and of their partners, who are other people."""
    total = len(pictures.chance)
    first = rng.choice(total, count, p=pictures.chance)
    sought = rng.choice(total, SOUGHT, p=pictures.chance)
    # Two people at least, of whom one is another: all that were drawn may show one, in a lopsided set.
    sought[-1] = rng.choice(np.flatnonzero(pictures.person != pictures.person[sought[0]]))
    other = pictures.person[first][:, None] != pictures.person[sought]
    cosines = np.where(other, pictures.teacher_NT[first] @ pictures.teacher_NT[sought].T, -2)
    nearest = np.argpartition(-cosines, ALIKE, axis=1)[:, :ALIKE]
    places = nearest[np.arange(count), rng.integers(ALIKE, size=count)]
    drawn = np.argmax(other * (1 + rng.random(cosines.shape)), axis=1)
    alike = (rng.random(count) < 0.5) & other[np.arange(count), places]
    return first, sought[np.where(alike, places, drawn)]


def smooth_noise(count: int, channels: int, knots: int, side: int, rng: torch.Generator) -> Tensor:
    """Random fields (B, channels, S, S), of about unit deviation, with `knots` x `knots` values of their own."""
    coarse = torch.randn(count, channels, knots, knots, generator=rng)
    return functional.interpolate(coarse, size=side, mode="bicubic", align_corners=False)


def blend(first_B3SS: Tensor, second_B3SS: Tensor, kinds_B: np.ndarray, rng: torch.Generator) -> Tensor:
    """The two in one (B, 3, S, S), 0..255: each by its kind, the places in KINDS."""
    count, _, side, _ = first_B3SS.shape
    mean = 0.3 + 0.4 * torch.rand(count, 1, 1, 1, generator=rng)
    regions = torch.sigmoid(6 * smooth_noise(count, 1, 4, side, rng))
    kind = torch.from_numpy(kinds_B).view(-1, 1, 1, 1)
    share = torch.where(kind == 0, mean, torch.where(kind == 1, regions, torch.zeros_like(mean)))
    blended = first_B3SS + (second_B3SS - first_B3SS) * share
    bent = (torch.rand(count, 1, 1, 1, generator=rng) < 0.5) | (kind == 2)
    return torch.where(bent, bend(blended, rng), blended).clamp(0, 255)


def bend(images_B3SS: Tensor, rng: torch.Generator) -> Tensor:
    """Stretched by some percent along each side, and moved from place to place by some pixels: of 112, with a deviation
    of 0.35 to 2.8."""
    count, _, side, _ = images_B3SS.shape
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    down, across = torch.meshgrid(steps, steps, indexing="ij")
    grid = torch.stack([across, down], -1) * (1 + 0.05 * torch.randn(count, 1, 1, 2, generator=rng))
    strength = (0.35 + 2.45 * torch.rand(count, 1, 1, 1, generator=rng)) / 56
    moved = smooth_noise(count, 2, 5, side, rng).permute(0, 2, 3, 1) * strength
    return functional.grid_sample(
        images_B3SS, grid + moved, mode="bicubic", padding_mode="border", align_corners=False
    )


def jpeg(pixels: np.ndarray) -> bytes:
    """An image (S, S, 3) as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_blends(pictures: Pictures, out: Path, *, count: int, seed: int, side: int) -> None:
    """`count` of them as `blends/SEED_NUMBER.jpg` of a .tar. Raises DataError where a picture cannot be read."""
    rng, torch_rng = np.random.default_rng([seed, 29]), torch.Generator().manual_seed(seed)
    with tarfile.open(out, "w") as tar:
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            first, second = draw_pairs(pictures, size, rng)
            kinds = rng.choice(len(KINDS), size, p=list(KINDS.values()))
            made = blend(pictures.pixels(first, side), pictures.pixels(second, side), kinds, torch_rng)
            for number, pixels in enumerate(made.round().byte().permute(0, 2, 3, 1).numpy(), start):
                data = jpeg(pixels)
                member = tarfile.TarInfo(f"blends/{seed}_{number:07d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "run", type=Path, help="folder of a stage one with a teacher, or one with its config.toml"
    )
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--side", type=int, default=112, help="of the pictures, pixels")
    parser.add_argument("--out", type=Path, required=True, help="the .tar to write")
    options = parser.parse_args()
    for name, least in (("count", 1), ("seed", 0), ("side", 8)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}; give {least} or more")
    if options.out.exists():
        parser.error(f"{options.out} is there already; give another --out")
    try:
        pictures = read_pictures(options.run)
        how = {"count": options.count, "seed": options.seed, "side": options.side}
        write_whole(options.out, lambda part: write_blends(pictures, part, **how))
    except FacemetricError as error:
        parser.error(str(error))
    print(f"{options.out}: {options.count:,} pictures, {options.out.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
