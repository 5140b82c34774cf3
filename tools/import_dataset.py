"""Brings a public data set into the shape that the commands read: OUT/train.tar and OUT/test.tar.

    python tools/import_dataset.py mnist data/mnist                  # downloads, by torchvision's loader
    python tools/import_dataset.py mnist data/mnist --from idx/      # files that are on this disk already
    python tools/import_dataset.py cifar10 data/cifar10 --from png/  # png/train/CLASS/*.png, png/test/CLASS/*.png

Members are `class/number.png`; folders of pictures are taken as they are. Sets without a test part (olivetti,
lfw) give OUT/all.tar. With --folder they are image folders in place of tars. OUT/SHA256SUMS holds a sum for
each tar (`sha256sum -c SHA256SUMS`): the same pictures give the same tar, byte for byte.

What --from may hold: the four IDX files of mnist and fashion-mnist, gzipped or not; the `*-python.tar.gz` of cifar10
and cifar100 as published, or unpacked; scikit-learn's olivetti_py3.pkz; lfw.tgz, or lfw/ unpacked; or, of
any set, train/ and test/ with a folder for each class.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from facemetric.data.index import read_index
from facemetric.errors import DataError, FacemetricError
from facemetric.files import write_whole


class Part(NamedTuple):
    """The pictures of a part of a set: `(class/file name, bytes)`, and how many there are."""

    name: str
    total: int
    pictures: Iterable[tuple[str, bytes]]


def png(picture: Image.Image) -> bytes:
    """A picture as PNG, without loss."""
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


def numbered(pictures: Iterable[tuple[Image.Image, str]]) -> Iterator[tuple[str, bytes]]:
    """Pictures with their classes -> names and bytes; the number is the picture's place in the set."""
    for number, (picture, name) in enumerate(pictures):
        yield f"{name}/{number:05d}.png", png(picture)


def of_torchvision(kind: Any, root: Path, *, download: bool) -> Iterator[Part]:
    """The two parts of a torchvision data set that has `train` as an argument."""
    for name, train in (("train", True), ("test", False)):
        try:
            found = kind(str(root), train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise DataError(f"torchvision's {kind.__name__}: {str(error).splitlines()[0]}") from error
        # "T-shirt/top" is one class, "0 - zero" the digit 0
        classes = [text.split(" - ")[0].replace("/", "-").replace(" ", "_") for text in found.classes]
        pictures = ((found[i][0], classes[found[i][1]]) for i in range(len(found)))
        yield Part(name, len(found), numbered(pictures))


def of_idx(kind: Any, folder: Path, root: Path) -> Iterator[Part]:
    """MNIST and Fashion-MNIST from their four IDX files; the sums of gzipped ones are compared with the published."""
    raw = root / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    for zipped, md5 in kind.resources:
        plain = zipped.removesuffix(".gz")
        if (folder / zipped).is_file():
            data = (folder / zipped).read_bytes()
            if hashlib.md5(data).hexdigest() != md5:
                print(f"{zipped} is not the file as published (MD5 {md5}); it may have been zipped again")
            try:
                (raw / plain).write_bytes(gzip.decompress(data))
            except (OSError, EOFError) as error:
                raise DataError(f"{folder / zipped} does not unzip ({error}); copy it again") from error
        elif (folder / plain).is_file():
            shutil.copyfile(folder / plain, raw / plain)
        else:
            raise DataError(f"{folder} holds neither {zipped} nor {plain}; give the folder of the IDX files")
    return of_torchvision(kind, root, download=False)


def of_archive(kind: Any, folder: Path, root: Path) -> Iterator[Part]:
    """CIFAR from its archive as published, or unpacked; the sums of either are checked, nothing is downloaded."""
    from torchvision.datasets.utils import extract_archive

    if (folder / kind.base_folder).is_dir():
        return of_torchvision(kind, folder, download=False)
    if not (folder / kind.filename).is_file():
        raise DataError(
            f"{folder} holds neither {kind.filename} nor {kind.base_folder}/ nor train/ with a folder a class"
        )
    archive = folder / kind.filename
    if hashlib.md5(archive.read_bytes()).hexdigest() != kind.tgz_md5:
        raise DataError(
            f"{archive} is not {kind.__name__}'s as published (MD5 {kind.tgz_md5}); copy it again"
        )
    extract_archive(str(archive), str(root))
    return of_torchvision(
        kind, root, download=False
    )  # which would fetch what is damaged, onto the user's file


def of_folders(folder: Path) -> Iterator[Part]:
    """train/ and test/ (or val/) with a folder for each class, files taken as they are."""
    for path in (folder / "train", *(folder / name for name in ("test", "val") if (folder / name).is_dir())):
        index = read_index(path)
        for note in index.notes:
            print(note)
        pictures = ((index.name(i), index.read(i)) for i in range(len(index)))
        yield Part(path.name, len(index), pictures)


def digits(name: str) -> Callable[[Path | None, Path], Iterator[Part]]:
    """MNIST or Fashion-MNIST."""

    def read(folder: Path | None, root: Path) -> Iterator[Part]:
        from torchvision import datasets

        kind = getattr(datasets, name)
        return of_idx(kind, folder, root) if folder else of_torchvision(kind, root, download=True)

    return read


def cifar(name: str) -> Callable[[Path | None, Path], Iterator[Part]]:
    """CIFAR-10 or CIFAR-100 (its 100 fine classes)."""

    def read(folder: Path | None, root: Path) -> Iterator[Part]:
        from torchvision import datasets

        kind = getattr(datasets, name)
        return of_archive(kind, folder, root) if folder else of_torchvision(kind, root, download=True)

    return read


def olivetti(folder: Path | None, root: Path) -> Iterator[Part]:
    """The 400 grey 64 x 64 faces of 40 people, by scikit-learn's loader."""
    from sklearn.datasets import fetch_olivetti_faces

    try:
        found = fetch_olivetti_faces(data_home=str(folder or root), download_if_missing=folder is None)
    except OSError as error:
        raise DataError(f"scikit-learn's olivetti faces: {error}") from error
    pictures = (
        (Image.fromarray(np.rint(image * 255).astype(np.uint8)), f"person_{who:02d}")
        for image, who in zip(found.images, found.target, strict=True)
    )
    yield Part("all", len(found.images), numbered(pictures))


def lfw(folder: Path | None, root: Path) -> Iterator[Part]:
    """Labeled Faces in the Wild as published: 250 x 250, not aligned (facemetric align aligns them)."""
    if folder is None:
        from sklearn.datasets import fetch_lfw_people

        try:  # few people: the photographs are wanted, not scikit-learn's matrix of them
            fetch_lfw_people(data_home=str(root), funneled=False, min_faces_per_person=500)
        except OSError as error:
            raise DataError(f"scikit-learn's LFW: {error}") from error
        folder = root / "lfw_home"
    if not (folder / "lfw").is_dir():
        if not (folder / "lfw.tgz").is_file():
            raise DataError(f"{folder} holds neither lfw/ nor lfw.tgz")
        with tarfile.open(folder / "lfw.tgz") as tar:
            tar.extractall(root, filter="data")
        folder = root
    index = read_index(folder / "lfw")
    yield Part("all", len(index), ((index.name(i), index.read(i)) for i in range(len(index))))


SETS = {
    "mnist": digits("MNIST"),
    "fashion-mnist": digits("FashionMNIST"),
    "cifar10": cifar("CIFAR10"),
    "cifar100": cifar("CIFAR100"),
    "olivetti": olivetti,
    "lfw": lfw,
}


def write_tar(path: Path, part: Part) -> None:
    """A plain tar, members in the set's order, without times and owners; whole or not at all."""

    def fill(staged: Path) -> None:
        with tarfile.open(staged, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in progress(part):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))

    write_whole(path, fill)


def write_folder(path: Path, part: Part) -> None:
    """An image folder; whole or not at all."""
    if path.exists():
        raise DataError(f"{path} is there already; name another OUT, or remove it")
    staged = path.with_name(path.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    for name, data in progress(part):
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_bytes(data)
    os.replace(staged, path)


def progress(part: Part) -> Iterable[tuple[str, bytes]]:
    """The pictures of a part under a bar."""
    return tqdm(part.pictures, part.name, part.total, unit="image", leave=False, delay=2)


def import_dataset(name: str, out: Path, *, source: Path | None = None, folder: bool = False) -> list[Path]:
    """Write the parts of a set to `out`; returns their paths. Raises DataError where the source lacks something."""
    if source is not None and not source.is_dir():
        raise DataError(f"{source} is no folder; --from takes the folder that holds the set's files")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        plain = source is not None and (source / "train").is_dir()
        parts = of_folders(source) if source and plain else SETS[name](source, Path(scratch))
        for part in parts:
            path = out / (part.name if folder else f"{part.name}.tar")
            (write_folder if folder else write_tar)(path, part)
            index = read_index(path)
            if len(index) != part.total:
                raise DataError(
                    f"{path} holds {len(index):,} pictures of {part.total:,}; the source has doubles"
                )
            print(f"{path}: {len(index):,} pictures of {len(index.identities)} classes")
            written.append(path)
    if not folder:
        lines = [f"{sha256(path)}  {path.name}\n" for path in written]
        (out / "SHA256SUMS").write_text("".join(lines))
    return written


def sha256(path: Path) -> str:
    """The SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(tokens: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=SETS, help="the data set")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--from", dest="source", type=Path, help="folder of its files; downloads without")
    parser.add_argument("--folder", action="store_true", help="image folders in place of tars")
    args = parser.parse_args(tokens)
    try:
        import_dataset(args.name, args.out, source=args.source, folder=args.folder)
    except (FacemetricError, OSError) as error:
        print(f"import_dataset: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
