"""Public sets come into the shape that the commands read, from small files of the same format, without a network."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import import_dataset
import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from facemetric.data.images import decode
from facemetric.data.index import read_index

IMAGES = np.random.default_rng(5).integers(0, 256, (12, 28, 28), np.uint8)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LABELS = np.array([3, 1, 0, 1, 5, 9, 2, 6, 5, 3, 5, 9], np.uint8)


def idx(values: np.ndarray) -> bytes:
    """An IDX file of bytes, as LeCun's page describes it: magic, sizes, values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of four IDX files, two of them gzipped; the test part has the last four pictures."""
    folder = tmp_path / "idx"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:8])))
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:8]))
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES[8:]))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[8:])))
    return folder


def pixels(path: Path) -> dict[str, np.ndarray]:
    """The pictures of a set by their names."""
    index = read_index(path)
    return {index.name(i): np.asarray(decode(index.read(i))) for i in range(len(index))}


def test_idx_files_become_tars_with_the_same_pixels(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert import_dataset.main(["mnist", str(out), "--from", str(files)]) == 0
    for name, images, labels in (("train", IMAGES[:8], LABELS[:8]), ("test", IMAGES[8:], LABELS[8:])):
        found = pixels(out / f"{name}.tar")
        assert found.keys() == {f"{label}/{i:05d}.png" for i, label in enumerate(labels)}
        for i, label in enumerate(labels):
            np.testing.assert_array_equal(found[f"{label}/{i:05d}.png"][..., 0], images[i])
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)
    sums = (out / "SHA256SUMS").read_text()
    assert len(sums.splitlines()) == 2
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "test.tar", "train.tar"]
    import_dataset.import_dataset("mnist", tmp_path / "again", source=files)
    assert (tmp_path / "again" / "SHA256SUMS").read_text() == sums


def test_fashion_classes_have_names_and_may_be_folders(files: Path, tmp_path: Path) -> None:
    arguments = ["fashion-mnist", str(tmp_path / "out"), "--from", str(files), "--folder"]
    assert import_dataset.main(arguments) == 0
    index = read_index(tmp_path / "out" / "train")
    assert {"Dress", "Trouser", "Ankle_boot", "T-shirt-top"} < set(index.identities)
    assert len(index) == 8
    assert import_dataset.main(arguments) == 2  # the folder is there already


def test_cifar_comes_from_its_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, images = cifar_archive(tmp_path)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for name in ("train_list", "test_list", "meta"):
        monkeypatch.setattr(datasets.CIFAR10, name, sums_of(getattr(datasets.CIFAR10, name), archive))
    import_dataset.import_dataset("cifar10", tmp_path / "out", source=tmp_path)
    found = pixels(tmp_path / "out" / "train.tar")
    assert len(found) == 10
    np.testing.assert_array_equal(found["ship/00003.png"], images[3].reshape(3, 32, 32).transpose(1, 2, 0))
    assert len(read_index(tmp_path / "out" / "test.tar")) == 2
    assert not (tmp_path / "cifar-10-batches-py").exists()  # nothing is unpacked beside the user's archive
    with open(archive, "ab") as file:
        file.write(b"x")
    damaged = archive.read_bytes()
    asked: list[object] = []

    def fetch(url: str, path: object, **_: object) -> None:
        asked.append(url)
        Path(str(path)).write_bytes(b"from the network")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", fetch)
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    with pytest.raises(
        import_dataset.DataError, match=r"tar\.gz is not CIFAR10's as published \(MD5 .*copy it again"
    ):
        import_dataset.import_dataset("cifar10", tmp_path / "damaged", source=tmp_path)
    assert archive.read_bytes() == damaged
    assert not asked


def cifar_archive(folder: Path) -> tuple[Path, np.ndarray]:
    """An archive of two pictures a batch in the published format, and its training pictures (10, 3072)."""
    images = np.random.default_rng(6).integers(0, 256, (12, 3072), np.uint8)
    base = folder / "made" / "cifar-10-batches-py"
    base.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        record = {"data": images[2 * i : 2 * i + 2], "labels": [i, 8 if i == 1 else 0]}
        (base / name).write_bytes(pickle.dumps(record))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, base.name)
    return archive, images[:10]


def sums_of(listed: object, archive: Path) -> object:
    """The lists of file names and MD5 sums, or the meta record, as they are of our small files."""
    base = archive.parent / "made" / "cifar-10-batches-py"

    def md5(name: str) -> str:
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    if isinstance(listed, dict):
        return listed | {"md5": md5(listed["filename"])}
    assert isinstance(listed, list)
    return [[name, md5(name)] for name, _ in listed]


def test_folders_of_pictures_are_taken_as_they_are(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "train/dog/c.png", "test/cat/d.png"):
        path = tmp_path / "png" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[0]).save(path)
    import_dataset.import_dataset("cifar100", tmp_path / "out", source=tmp_path / "png")
    index = read_index(tmp_path / "out" / "train.tar")
    assert [index.name(i) for i in range(3)] == ["cat/a.png", "dog/b.png", "dog/c.png"]
    assert index.read(1) == (tmp_path / "png/train/dog/b.png").read_bytes()
    assert len(read_index(tmp_path / "out" / "test.tar")) == 1


def test_lfw_comes_from_its_folder_or_archive(tmp_path: Path) -> None:
    path = tmp_path / "lfw" / "A_Person" / "A_Person_0001.jpg"
    path.parent.mkdir(parents=True)
    Image.fromarray(IMAGES[0]).save(path)
    import_dataset.import_dataset("lfw", tmp_path / "one", source=tmp_path)
    (tmp_path / "zipped").mkdir()
    with tarfile.open(tmp_path / "zipped" / "lfw.tgz", "w:gz") as tar:
        tar.add(tmp_path / "lfw", "lfw")
    import_dataset.import_dataset("lfw", tmp_path / "two", source=tmp_path / "zipped")
    assert (tmp_path / "one" / "all.tar").read_bytes() == (tmp_path / "two" / "all.tar").read_bytes()
    assert read_index(tmp_path / "one" / "all.tar").identities == ("A_Person",)


def test_olivetti_comes_from_scikit_learns_file(tmp_path: Path) -> None:
    import joblib

    faces = np.random.default_rng(7).integers(0, 256, (400, 4096)).astype(np.float32) / 255
    joblib.dump(faces, tmp_path / "olivetti_py3.pkz")
    import_dataset.import_dataset("olivetti", tmp_path / "out", source=tmp_path)
    found = pixels(tmp_path / "out" / "all.tar")
    assert len(found) == 400
    upright = np.rint(faces[13] * 255).reshape(64, 64).T  # the published matrix holds them lying
    np.testing.assert_array_equal(found["person_01/00013.png"][..., 0], upright)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("mnist", lambda folder: (folder / "t10k-images-idx3-ubyte").unlink(), "holds neither t10k-images"),
        ("mnist", lambda folder: cut(folder / "train-images-idx3-ubyte.gz"), "does not unzip"),
        ("cifar10", lambda folder: None, "holds neither cifar-10-python.tar.gz"),
        ("lfw", lambda folder: None, "holds neither lfw/ nor lfw.tgz"),
        ("olivetti", lambda folder: None, "scikit-learn's olivetti faces"),
        (
            "lfw",
            lambda folder: [path.unlink() for path in folder.iterdir()] and folder.rmdir(),
            "is no folder",
        ),
    ],
)
def test_what_is_missing_is_one_line(
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    spoil(files)
    assert import_dataset.main([name, str(tmp_path / "out"), "--from", str(files)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])
