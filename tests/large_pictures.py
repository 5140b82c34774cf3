"""Small images for the tests of the readers of large sets."""

from __future__ import annotations

import random
from pathlib import Path

from large_sets import Picture

from facemetric.data.index import read_index


def pictures(count: int = 30, *, first: int = 1) -> list[Picture]:
    """Images of ten people, named by number, whose bytes are none of an image."""
    chance = random.Random(0)
    return [
        Picture(str(10 + n % 10), f"{n:08d}.jpg", chance.randbytes(chance.choice([1, 5, 300, 3000])))
        for n in range(first, first + count)
    ]


def held(images: list[Picture]) -> dict[str, tuple[str, bytes]]:
    """What an index of the images holds: identity and bytes by `identity/name`."""
    return {f"{image.identity}/{image.name}": (image.identity, image.data) for image in images}


def as_folder(root: Path, images: list[Picture]) -> Path:
    """The images as files, `identity/name`."""
    for image in images:
        path = root / image.identity / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    return root


def unread(source: Path) -> dict[str, str]:
    """The images of a source that cannot be read, by name, with the reason."""
    index, found = read_index(source), {}
    for i in range(len(index)):
        try:
            index.read(i)
        except OSError as error:
            found[index.name(i)] = error.strerror or str(error)
    return found
