"""What the system refuses while sources are read: folders, lists and tars that cannot be opened or that shrink."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from facemetric.data.index import read_index
from facemetric.data.readers import folder, tar
from facemetric.data.readers.tar import walk_tar
from facemetric.errors import DataError

DENIED = PermissionError(errno.EACCES, "Permission denied")


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def deny(monkeypatch: pytest.MonkeyPatch, call: str, where: object) -> None:
    """`os.call(where)` is refused; root may do everything, so modes of files do not tell."""
    real: Callable[..., object] = getattr(os, call)

    def refuse(path: object, *rest: object, **options: object) -> object:
        if str(path) == str(where):
            raise DENIED
        return real(path, *rest, **options)

    monkeypatch.setattr(os, call, refuse)


def message(data: object) -> str:
    with pytest.raises(DataError) as caught:
        read_index(data)  # type: ignore[arg-type]
    return str(caught.value)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "anna" / "1.jpg")
    deny(monkeypatch, "scandir", tmp_path / "anna")
    assert message(tmp_path) == (
        f"{tmp_path / 'anna'}: cannot be listed (Permission denied); give a readable folder without link loops"
    )


def test_a_folder_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"anna: cannot be entered \(No such file or directory\)"):
        folder._identity_of(str(tmp_path / "anna"))


def test_a_csv_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "list.csv", b"path,identity\na.jpg,anna\n")

    def refuse(*_: object, **__: object) -> object:
        raise DENIED

    monkeypatch.setattr("builtins.open", refuse)
    assert message(path) == f"{path}: cannot be read (Permission denied)"


def test_a_tar_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.tar")
    deny(monkeypatch, "open", path)
    assert message(path) == f"{path}: cannot be opened (Permission denied)"


def packed(path: Path, *members: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as file:
        for info in members:
            file.addfile(info, io.BytesIO(b"d" * info.size))
    return path


def member(name: str, size: int = 700) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def test_a_tar_cut_in_the_middle_of_a_long_name(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("anna/1.jpg"), member("anna/" + "n" * 1500 + ".jpg"))
    whole = path.read_bytes()
    header = 512 + 1024  # of the long name, behind the first member
    assert whole[header + 156 : header + 157] == b"L"
    path.write_bytes(whole[: header + 512 + 700])
    assert message(path) == (
        f"{path}: cut short at byte {header + 1212}, 1 members are whole: copy or make it again"
    )


def test_a_sparse_member_is_refused_by_its_own_name(tmp_path: Path) -> None:
    info = member("GNUSparseFile.0/1.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "anna/1.jpg"}
    path = packed(tmp_path / "a.tar", info, form=tarfile.PAX_FORMAT)
    assert "1 members are no plain files below it: anna/1.jpg (sparse)" in message(path)


def test_a_tar_that_shrinks_while_its_end_is_looked_at(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tar", member("anna/1.jpg"))
    with open(path, "rb") as file:
        tar._nothing_behind(str(path), file.fileno(), path.stat().st_size, path.stat().st_size + 1)
    assert [found.name for found in walk_tar(str(path))] == ["anna/1.jpg"]


def test_a_tar_cut_short_between_the_look_and_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "a.tar", member("anna/1.jpg"))
    index = read_index(path)
    assert index.read(0) == b"d" * 700
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, size, at)[:-1])
    with pytest.raises(OSError, match="was cut short since it was indexed") as caught:
        index.read(0)
    assert caught.value.errno == errno.EIO


def test_the_sizes_and_the_look_of_an_index(tmp_path: Path) -> None:
    put(tmp_path / "anna" / "1.jpg", b"abc")
    put(tmp_path / "bob" / "1.jpg", b"a")
    put(tmp_path / "bob" / "2.jpg", b"")
    index = read_index(tmp_path)
    assert index.sizes().tolist() == [3, 1, 0]
    assert index.select(index.identity == 1).sizes().tolist() == [1, 0]
    assert repr(index) == "<ImageIndex: 3 images of 2 identities>"


def test_empty_lines_of_a_csv_are_none(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    index = read_index(put(tmp_path / "list.csv", b"path,identity\n\na.jpg,anna\n\n\nb.jpg,bob\n\n"))
    assert index.identities == ("anna", "bob")
