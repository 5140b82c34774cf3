"""Faces drawn from parameters: the demo's embedded default and the tests' data. No photograph, no network.

A picture depends on four numbers only: the seed, the identity's number, the picture's number and the size.
The same four give the same picture in any order of drawing, by any number of processes.
Shapes: N pictures, H = W = size in pixels.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from facemetric.data.drawn import features as features
from facemetric.data.drawn import head as head
from facemetric.data.drawn.pen import Pen
from facemetric.data.drawn.traits import Identity, Nuisance, draw_traits
from facemetric.errors import ConfigError
from facemetric.files import write_whole

MIN_SIZE = 16  # pixels; below it nothing of a face is left
_CANVAS = 120  # pixels; drawn at least this large and then reduced, which smooths the edges
_GREY = np.array([0.299, 0.587, 0.114])


def _check(**numbers: int) -> None:
    for what, value in numbers.items():
        least = {"size": MIN_SIZE, "seed": 0}.get(what, 1)
        if value < least:
            raise ConfigError(f"drawn faces: {what} is {value}; give at least {least}")


def face_identity(seed: int, number: int) -> Identity:
    """The traits of identity `number` (0, 1, 2, ...) of the population that `seed` names."""
    return draw_traits(Identity, [seed, number, 0])


def face_nuisance(seed: int, number: int, image: int) -> Nuisance:
    """Pose, light, expression and the rest of picture `image` (0, 1, 2, ...) of identity `number`."""
    return draw_traits(Nuisance, [seed, number, 1, image])


def draw_face(identity: Identity, nuisance: Nuisance, size: int = 96) -> Image.Image:
    """One RGB picture of (size, size) pixels. JPEG loss is not in it yet: that comes with the file."""
    _check(size=size)
    times = max(2, -(-_CANVAS // size))
    pen = Pen(identity, nuisance, size * times)
    head.draw_background(pen, nuisance)
    head.draw_body(pen, identity, nuisance)
    outline = head.draw_head(pen, identity)
    head.draw_shading(pen, identity, outline)
    head.draw_marks(pen, identity)
    features.draw_beard(pen, identity, outline)
    features.draw_eyes(pen, identity, nuisance)
    features.draw_brows(pen, identity, nuisance)
    features.draw_nose(pen, identity)
    features.draw_mouth(pen, identity, nuisance)
    head.draw_front_hair(pen, identity)
    head.draw_glasses(pen, identity, nuisance)
    return _photograph(pen.image.reduce(times), nuisance)


def _photograph(picture: Image.Image, scene: Nuisance) -> Image.Image:
    """What lamp and camera do to the scene: slope and colour of the light, exposure, blur, noise."""
    size = picture.width
    if scene.blur > 0:
        picture = picture.filter(ImageFilter.GaussianBlur(scene.blur * size / 96))
    colour = np.asarray(picture, np.float32) * np.float32(1 / 255)
    along = np.linspace(-1, 1, size, dtype=np.float32)
    across = np.cos(scene.slope_angle) * along + np.sin(scene.slope_angle) * along[:, None]
    level = (scene.gain * (1 + scene.slope * np.tanh(2 * across))).astype(np.float32)
    lamp = np.array([1 + scene.warmth, 1 + scene.tint, 1 - scene.warmth])
    # desaturation and the lamp's colour are one 3x3 matrix
    mix = (1 - scene.saturation) * _GREY[:, None] + scene.saturation * np.eye(3)
    light = (colour @ (mix * lamp).astype(np.float32)) * level[..., None]
    light *= 1 + np.float32(scene.contrast) * (light - 1)  # a bent curve: white stays white, black black
    noise = np.random.default_rng(scene.pattern).standard_normal(light.shape, dtype=np.float32)
    light += noise * np.float32(scene.noise)
    light *= 255
    return Image.fromarray(np.clip(light, 0, 255, out=light).astype(np.uint8))


def face_jpeg(seed: int, number: int, image: int, size: int = 96) -> bytes:
    """The JPEG file of picture `image` of identity `number`."""
    nuisance = face_nuisance(seed, number, image)
    picture = draw_face(face_identity(seed, number), nuisance, size)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(nuisance.jpeg_quality))
    return file.getvalue()


def _identity_jpegs(number: int, *, seed: int, images: int, size: int) -> list[bytes]:
    return [face_jpeg(seed, number, image, size) for image in range(images)]


def _all_jpegs(
    seed: int, identities: int, images: int, size: int, workers: int
) -> Generator[list[bytes], None, None]:
    """The files of each identity, in order. Processes only share out the work: the bytes stay the same."""
    job = partial(_identity_jpegs, seed=seed, images=images, size=size)
    if workers <= 1:
        yield from map(job, range(identities))
        return
    # spawn, as the caller may hold torch threads that a fork would leave locked
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from pool.map(job, range(identities), chunksize=4)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _put(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def draw_faces(
    out: str | Path,
    *,
    identities: int = 300,
    images: int = 12,
    size: int = 96,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
) -> Path:
    """Writes `out/drawn_0001/0001.jpg` and so on, a folder an identity, `size` pixels square. Returns `out`.

    Files of the same name are replaced, others are left alone; a full disk raises OSError. With two workers
    or more a script that calls this needs the usual `if __name__ == "__main__":`, as the processes import it.
    """
    _check(identities=identities, images=images, size=size, seed=seed)
    out = Path(out)
    files = _all_jpegs(seed, identities, images, size, min(workers, identities))
    bar = tqdm(total=identities * images, desc="drawing faces", unit="image", disable=not progress)
    with bar, contextlib.closing(files):
        for number, jpegs in enumerate(files, 1):
            folder = out / f"drawn_{number:04d}"
            for image, jpeg in enumerate(jpegs, 1):
                write_whole(folder / f"{image:04d}.jpg", partial(_put, jpeg))
            bar.update(images)
    return out
