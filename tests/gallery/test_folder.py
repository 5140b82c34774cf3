"""A gallery on disk: whole after a kill, a full disk and two writers; damaged files are refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import in_a_child
from enrolled_rows import content, new_folder, rows_of

from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.gallery import folder as module
from facemetric.gallery.folder import LIST, LOCK, PARTS, GalleryFolder
from facemetric.gallery.parts import geometric

CALLS = ("replace", "fsync", "unlink", "mkdir")


def guard(monkeypatch: pytest.MonkeyPatch, before: Callable[[str, int], None]) -> None:
    """Call `before` with the name and the number of each call that changes files."""
    count = [0]

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            before(name, count[0])
            return real(*arguments, **options)

        return run

    for name in CALLS:
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "g")
    assert (len(folder), folder.counts()) == (0, {})
    rows = rows_of(["ada", "grace", "ada", "Žofie 山田"])
    folder.append(rows)
    again = GalleryFolder(tmp_path / "g")
    assert again.counts() == {"ada": 2, "grace": 1, "Žofie 山田": 1}
    assert content(again) == sorted(
        zip(rows.names, rows.photos, [e.tobytes() for e in rows.embeddings], rows.crops, strict=True)
    )
    np.testing.assert_array_equal(again.parts[0].photo_hash, rows.photo_hash)
    assert again.list.weights == "a" * 64
    assert not isinstance(again.parts[0].embeddings, np.memmap)
    assert not again.parts[0].embeddings.flags.owndata  # it is the file that is mapped
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "g" / PARTS).iterdir()} == {0o044}


def test_a_reader_sees_what_others_write(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "g")
    reader = GalleryFolder(tmp_path / "g")
    assert not reader.refresh()
    folder.append(rows_of(["ada"]))
    assert len(reader) == 0
    assert reader.refresh()
    assert len(reader) == 1


def test_few_parts_however_many_times_is_added(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "g")
    expected = []
    for i in range(21):
        folder.append(rows_of([f"p{i}"], seed=i))
        expected.append(f"p{i}")
        assert len(folder.parts) <= 6
        assert sum(1 for _ in (tmp_path / "g" / PARTS).iterdir()) == 2 * len(folder.parts)
    assert list(folder.counts()) == sorted(expected)


def test_a_part_holds_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ROWS", 4)
    monkeypatch.setattr("facemetric.gallery.parts.MOST_ROWS", 4)
    folder = new_folder(tmp_path / "g")
    folder.append(rows_of([f"p{i}" for i in range(10)]))
    assert [len(part) for part in folder.parts] == [4, 4, 2]
    folder.append(rows_of(["q", "r"], seed=1))
    assert [len(part) for part in folder.parts] == [4, 4, 4]
    assert geometric([part.record for part in folder.parts], 1) == []


def test_who_is_removed_is_gone_from_the_disk(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "g")
    folder.append(rows_of(["ada", "grace", "ada"]))
    folder.append(rows_of(["mary"] * 9, seed=1))
    before = folder.parts[0].rows
    gone = folder.remove(lambda part: np.array([part.name(i) == "ada" for i in range(len(part))]))
    assert gone is not None
    assert list(gone.names) == ["ada", "ada"]
    assert folder.counts() == {"grace": 1, "mary": 9}
    there = b"".join(path.read_bytes() for path in (tmp_path / "g").rglob("*") if path.is_file())
    for secret in (b"ada", before.embeddings[0].tobytes(), before.crops[2]):
        assert secret not in there
    assert before.embeddings[1].tobytes() in there
    assert folder.remove(lambda part: np.zeros(len(part), bool)) is None
    folder.remove(lambda part: np.ones(len(part), bool))
    assert (len(folder), list((tmp_path / "g" / PARTS).iterdir())) == (0, [])


@pytest.mark.parametrize("change", ["append", "remove"])
def test_killed_at_any_change_of_a_file(tmp_path: Path, change: str) -> None:
    def work(folder: GalleryFolder) -> None:
        if change == "append":
            folder.append(rows_of(["mary", "grace"], seed=1))
        else:
            folder.remove(lambda part: np.array([part.name(i) == "ada" for i in range(len(part))]))

    call, seen = 0, set()
    while True:
        call += 1
        path = tmp_path / f"{call}"
        new_folder(path).append(rows_of(["ada", "grace"]))
        before = content(GalleryFolder(path))

        def killed(path: Path = path, call: int = call) -> None:
            folder = GalleryFolder(path)

            def die(name: str, number: int) -> None:
                if number == call:
                    os.kill(os.getpid(), signal.SIGKILL)

            with pytest.MonkeyPatch.context() as patch:
                guard(patch, die)
                work(folder)

        if in_a_child(killed) == 0:
            break
        folder = GalleryFolder(path)
        folder.check()
        now = content(folder)
        seen.add(now == before)
        if now == before:  # not done: the same again
            work(folder)
        after = content(GalleryFolder(path))
        assert len(after) == (4 if change == "append" else 1)
        folder.append(rows_of(["next"], seed=2))  # and what was left over is cleared away
        listed = {file for record in folder.list.parts for file in record.files(path / PARTS)}
        assert set((path / PARTS).iterdir()) == listed
    assert call > 6
    assert seen == {True, False}  # before the list was replaced, and after


def _write_many(path: Path, number: int) -> None:
    folder = GalleryFolder(path)
    for i in range(5):
        folder.append(rows_of([f"writer {number}"], seed=10 * number + i))


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    new_folder(tmp_path / "g")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path / "g", number)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    folder = GalleryFolder(tmp_path / "g")
    folder.check()
    assert folder.counts() == {"writer 1": 5, "writer 2": 5}


def test_who_holds_the_lock_too_long_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_folder(tmp_path / "g")
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    with (
        module._locked(tmp_path / "g"),
        pytest.raises(ConfigError, match="has been written by another process for 0 seconds; wait for it"),
    ):
        folder.append(rows_of(["ada"]))
    folder.append(rows_of(["ada"]))
    assert len(folder) == 1


def test_a_full_disk_leaves_the_gallery_as_it_was(tmp_path: Path) -> None:
    call = 0
    while True:
        call += 1
        path = tmp_path / f"{call}"
        folder = new_folder(path)
        folder.append(rows_of(["ada", "grace"]))
        before = content(folder)

        def full(name: str, number: int, call: int = call) -> None:
            if number >= call and name != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            guard(patch, full)
            try:
                folder.append(rows_of(["mary"] * 3, seed=1))
                break
            except OSError as error:
                met = error
        assert met.errno == errno.ENOSPC
        assert met.filename is not None
        now = content(GalleryFolder(path))
        assert now == before or len(now) == 5  # the list was in place, its folder was not synced yet
        names = {file.name for file in path.rglob("*") if file.is_file()}
        assert not [name for name in names if name.startswith(".")]
        folder = GalleryFolder(path)
        folder.check()
        folder.append(rows_of(["mary"], seed=2))  # when there is room again
        assert "mary" in folder.counts()
    assert call > 4


def damage(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    elif how == "cut":
        os.truncate(file, file.stat().st_size - 1)
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["gone", "cut", "one bit"])
def test_a_damaged_part_is_refused(tmp_path: Path, how: str) -> None:
    folder = new_folder(tmp_path / "g")
    folder.append(rows_of(["ada", "grace"]))
    rows_file, crops_file = folder.list.parts[0].files(tmp_path / "g" / PARTS)
    kept = crops_file.read_bytes()
    damage(crops_file, how)
    GalleryFolder(tmp_path / "g")  # pictures are not looked at
    with pytest.raises(DataError, match=r"crops is not the file that the gallery's list describes"):
        folder.check()
    crops_file.write_bytes(kept)
    damage(rows_file, how)
    with pytest.raises(DataError, match=r"safetensors is not the file .*\(cut short or changed\)"):
        GalleryFolder(tmp_path / "g")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "sha256": ""}', "null", '"' + "x" * 99]
)
def test_a_damaged_list_is_refused(tmp_path: Path, text: str) -> None:
    new_folder(tmp_path / "g").append(rows_of(["ada"]))
    (tmp_path / "g" / LIST).write_text(text)
    with pytest.raises(DataError, match=r"gallery\.json is damaged"):
        GalleryFolder(tmp_path / "g")


def test_a_list_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    new_folder(tmp_path / "g").append(rows_of(["ada"]))
    file = tmp_path / "g" / LIST
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"weights_sha256": "b" * 64}))
    with pytest.raises(DataError, match=r"gallery\.json is damaged"):
        GalleryFolder(tmp_path / "g")
    file.write_text(json.dumps(record | {"format": 2}))
    with pytest.raises(DataError, match="has format 2, this version reads 1; update facemetric"):
        GalleryFolder(tmp_path / "g")


def test_what_is_no_gallery_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"nowhere is no gallery: it has no gallery\.json; `facemetric gallery add"
    ):
        GalleryFolder(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for call in (GalleryFolder, new_folder):
        with pytest.raises(DataError, match="file is a file; a gallery is a folder"):
            call(tmp_path / "file")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    with pytest.raises(DataError, match=r"holds other files \(a\.jpg\) and no gallery; name a new folder"):
        new_folder(tmp_path / "photos")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / LOCK).write_text("")  # of a process that was killed before it wrote the list
    assert len(new_folder(tmp_path / "half")) == 0
    assert len(new_folder(tmp_path / "half")) == 0  # and one that is there already


def test_other_weights_are_refused(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "g")
    folder.check_weights("a" * 64, "some-weights")
    with pytest.raises(
        WeightsError, match=r"was enrolled with other weights \(some-weights, sha256 aaaaaaaaaaaa"
    ):
        folder.check_weights("b" * 64, "others")
