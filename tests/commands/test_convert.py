"""`facemetric data convert`: any source to shards, the bytes as they are, through kills, nothing overwritten."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_processes import in_a_child
from commands_typed import Ran
from large_pictures import as_folder, held, pictures
from large_sets import Picture, write_lmdb, write_parquet, write_rec, write_webdataset
from source_files import contents, names, put

from facemetric import convert_data
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.readers.skips import skipped_folder
from facemetric.errors import ConfigError, DataError

SOURCES: dict[str, Callable[[Path, list[Picture]], Path]] = {
    "folder": lambda path, images: as_folder(path / "folder", images),
    "rec": lambda path, images: write_rec(path / "train.rec", images),
    "webdataset": lambda path, images: write_webdataset(path / "a.tar", images),
    "parquet": lambda path, images: write_parquet(path / "a.parquet", images, group=7),
    "lmdb": lambda path, images: write_lmdb(
        path / "data.mdb", {name.encode(): data for name, (_, data) in held(images).items()}
    ),
}


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("webdataset", [False, True])
def test_every_source(tmp_path: Path, kind: str, webdataset: bool) -> None:
    images = pictures(80)
    source = SOURCES[kind](tmp_path, images)
    done = convert_data(source, out=tmp_path / "out", webdataset=webdataset)
    assert (done.images, done.identities, done.shards, done.bad) == (80, 10, 1, 0)
    assert done.size == sum(len(image.data) for image in images)
    assert contents(tmp_path / "out") == held(images)
    folder = SOURCES["folder"](tmp_path / "again", images)
    assert read_index(tmp_path / "out").fingerprint == read_index(folder).fingerprint
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert {name.endswith(".cls") for name in tar.getnames()} == (
            {True, False} if webdataset else {False}
        )


def test_the_size_of_a_shard(tmp_path: Path) -> None:
    images = [Picture("7", f"{n:02d}.jpg", bytes([n]) * 300_000) for n in range(10)]
    images[4] = images[4]._replace(data=b"large" * 500_000)
    done = convert_data(as_folder(tmp_path / "in", images), out=tmp_path / "out", shard_mib=1)
    assert done.shards == 5
    assert contents(tmp_path / "out") == held(images)
    found = [len(read_index(path)) for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert found == [3, 1, 1, 3, 2]  # at most a MiB each, but for one image that is larger


@pytest.mark.parametrize("call", [1, 2, 3, 5, 8, 9, 12])
def test_killed_at_any_moment_and_gone_on_with(tmp_path: Path, call: int) -> None:
    images = [Picture(str(n % 3), f"{n:02d}.jpg", bytes([n]) * 400_000) for n in range(7)]
    source = as_folder(tmp_path / "in", images)
    convert_data(source, out=tmp_path / "whole", shard_mib=1)
    whole = shards_of(tmp_path / "whole")
    assert len(whole) == 4

    def killed() -> None:
        count, real = [0], (os.replace, os.fsync)

        def guarded(number: int) -> Callable[..., Any]:
            def run(*arguments: Any) -> Any:
                count[0] += 1
                if count[0] == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[number](*arguments)

            return run

        os.replace, os.fsync = guarded(0), guarded(1)  # type: ignore[assignment]
        convert_data(source, out=tmp_path / "out", shard_mib=1)

    in_a_child(killed, -signal.SIGKILL)
    left = shards_of(tmp_path / "out")
    assert left.items() <= whole.items()
    assert len(left) < 4 or call > 8
    if (tmp_path / "out" / "unfinished.json").exists():
        with pytest.raises(
            DataError, match="is a conversion that has not finished; the same `facemetric data"
        ):
            read_index(tmp_path / "out")
    done = convert_data(source, out=tmp_path / "out", shard_mib=1)
    assert (done.images, done.shards) == (7, 4)
    assert shards_of(tmp_path / "out") == whole
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*whole, "converted.json"}


def test_again_it_writes_nothing_and_counts_again(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "in", pictures())
    first = convert_data(source, out=tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert convert_data(source, out=tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    shard = tmp_path / "out" / "shard-000000.tar"
    shard.write_bytes(tarfile_without_last(shard))
    with pytest.raises(DataError, match=r"holds 29 images of .* and 30 of .* were written; remove"):
        convert_data(source, out=tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000000\.tar: is missing; remove"):
        convert_data(source, out=tmp_path / "out")


def tarfile_without_last(path: Path) -> bytes:
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    return path.read_bytes()[: last.offset] + bytes(10240)


def test_nothing_of_the_users_is_overwritten(tmp_path: Path) -> None:
    source = as_folder(tmp_path / "in", pictures())
    put(tmp_path / "taken" / "notes.txt")
    with pytest.raises(ConfigError, match=r"holds other files \(notes.txt, ...\); name a new folder"):
        convert_data(source, out=tmp_path / "taken")
    convert_data(source, out=tmp_path / "out")
    for options in ({"shard_mib": 3}, {"webdataset": True}):
        with pytest.raises(ConfigError, match="holds shards of other images or of other options"):
            convert_data(source, out=tmp_path / "out", **options)
    put(source / "10" / "new.jpg")
    with pytest.raises(ConfigError, match="holds shards of other images or of other options"):
        convert_data(source, out=tmp_path / "out")
    (tmp_path / "out" / "converted.json").write_text("{")
    with pytest.raises(ConfigError, match=r"converted.json is damaged; remove"):
        convert_data(source, out=tmp_path / "out")


def test_images_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = as_folder(tmp_path / "in", pictures())
    real = ImageIndex.read

    def read(index: ImageIndex, i: int) -> bytes:
        if index.name(i).endswith(("03.jpg", "04.jpg")):
            raise OSError(5, "Input/output error")
        return real(index, i)

    monkeypatch.setattr(ImageIndex, "read", read)
    with pytest.raises(DataError, match=r"1 of 30 images are bad, above the share of 0\.01"):
        convert_data(source, out=tmp_path / "out")
    done = convert_data(source, out=tmp_path / "out", max_bad=0.2)
    assert (done.images, done.bad) == (28, 2)
    assert "2 cannot be read and were left out:" in done.text()
    assert (tmp_path / "out" / "bad_images.csv").read_text().count("cannot be read: Input/output error") == 2
    assert set(contents(tmp_path / "out")) == set(held(pictures())) - {"12/00000003.jpg", "13/00000004.jpg"}


def test_names_that_folders_of_a_tar_cannot_be(tmp_path: Path) -> None:
    root = as_folder(tmp_path / "in", pictures(3))
    lines = ["path,identity", "11/00000001.jpg,a/b", "12/00000002.jpg,.hidden", "13/00000003.jpg,Ada B.\n"]
    table = put(tmp_path / "in" / "list.csv", "\n".join(lines).encode())
    with pytest.raises(
        DataError, match=r"cannot be: '.hidden' .* 'a/b' .*; give --webdataset|cannot be: .*a/b"
    ):
        convert_data(table, out=tmp_path / "plain")
    convert_data(table, out=tmp_path / "out", webdataset=True)
    assert read_index(tmp_path / "out").identities == (".hidden", "Ada B.", "a/b")
    assert skipped_folder(".hidden/x.jpg")
    two = convert_data([f"a={root}", f"b={root}"], out=tmp_path / "two", webdataset=True)
    assert two.images == 6
    assert read_index(tmp_path / "two").identities[0] == "a/11"


def test_paths_of_a_csv_and_names_without_an_ending(tmp_path: Path) -> None:
    put(tmp_path / "in" / "one.jpg", b"\xff\xd8\xff1")
    put(tmp_path / "away" / "two.jpg", b"2")
    table = put(
        tmp_path / "in" / "l.csv",
        f"path,identity\none.jpg,anna\n{tmp_path}/away/../away/two.jpg,anna\n".encode(),
    )
    convert_data(table, out=tmp_path / "out")
    found = contents(tmp_path / "out")
    assert {(who, data) for who, data in found.values()} == {("anna", b"\xff\xd8\xff1"), ("anna", b"2")}
    assert "anna/one.jpg" in found
    twice = put(tmp_path / "in" / "t.csv", b"path,identity\none.jpg,anna\n./one.jpg,anna\n")
    with pytest.raises(DataError, match="1 images would have the name of another in the shards"):
        convert_data(twice, out=tmp_path / "twice")


def test_an_ending_by_the_bytes(tmp_path: Path) -> None:
    import pickle

    images = [b"\x89PNG\r\n1", b"\xff\xd8\xff2", b"GIF893", b"?4"]
    source = put(tmp_path / "a.bin", pickle.dumps((images, [True, False]), protocol=4))
    convert_data(source, out=tmp_path / "out")
    assert [name.rpartition(".")[2] for name in names(read_index(tmp_path / "out"))] == [
        "png",
        "jpg",
        "gif",
        "jpg",
    ]


def test_the_command(command: Callable[..., Ran], tmp_path: Path) -> None:
    source = write_rec(tmp_path / "train.rec", pictures())
    done = command("data", "convert", source, "--out", tmp_path / "out")
    assert done.status == 0
    size = sum(len(image.data) for image in pictures()) / 2**20
    assert done.out.splitlines()[-1] == (
        f"30 images of 10 identities in 1 shard in {tmp_path}/out, {size:,.1f} MiB, counted again by the tar reader"
    )
    assert json.loads((tmp_path / "out" / "converted.json").read_text())["shards"][0][3] == 30
    assert "no DATA was given" in command("data", "convert", "--out", tmp_path / "x").fault
    assert (
        "--shard-mib is 0; it must be at least 1"
        in command("data", "convert", source, "--shard-mib", 0).fault
    )
    (tmp_path / "c.toml").write_text(f'data = ["{source}"]\nout = "{tmp_path}/toml"\nwebdataset = true\n')
    assert command("data", "convert", "--config", tmp_path / "c.toml").status == 0
    assert contents(tmp_path / "toml") == held(pictures())
