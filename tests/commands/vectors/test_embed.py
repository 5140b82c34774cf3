"""Pictures to one table: rows, reasons, refusals; the same bytes after a kill, on a full disk, by two processes."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_a_child, in_processes
from photographs import FLOWER, HOPPER, hopper, pair

import facemetric as fm
import facemetric.cli
from facemetric.commands.vectors import parts as parts_room
from facemetric.commands.vectors.embed import EmbeddedFile, embed
from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import load_embedder, save_weights

README = Path(fm.__file__).parent / "commands" / "vectors" / "README.md"
PLAIN: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 8, "runtime": "torch"}


@pytest.fixture(scope="module")
def of_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that learned nothing, and expect faces."""
    torch.manual_seed(0)
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)), embedding_size=16)
    embedder.pictures = "faces"
    folder = tmp_path_factory.mktemp("weights") / "faces"
    save_weights(folder, embedder, provenance={}, metrics={})
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loose photographs, and what is none."""
    folder = tmp_path_factory.mktemp("photographs")
    hopper().save(folder / "hopper, grace.png")
    pair().resize((512, 300)).save(folder / "two.jpg", quality=95)
    shutil.copy(FLOWER, folder / "flower.jpg")
    (folder / "cut.jpg").write_bytes(HOPPER.read_bytes()[:3000])
    (folder / "paper.jpg").write_bytes(b"%PDF-1.4 a page")
    (folder / "film.jpg").write_bytes(b"\0\0\0\x18ftypmp42 and so on")
    return folder


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(parts_room, "PART", 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # these tests fork
    yield
    torch.set_num_threads(threads)


def reasons(file: Path) -> dict[str, tuple[str, str]]:
    lines = list(csv.DictReader(file.read_text().splitlines()))
    return {line["path"]: (line["kind"], line["reason"]) for line in lines}


def test_photographs_have_a_row_or_a_reason(of_faces: Path, photographs: Path, tmp_path: Path) -> None:
    found = embed(photographs, weights=of_faces, out=tmp_path / "E.parquet", **PLAIN)
    assert (found.rows, found.pictures, found.without_face, found.unreadable) == (2, 6, 1, 3)
    frame = found.to_frame()
    assert frame.path.tolist() == ["hopper, grace.png", "two.jpg"]
    assert frame.identity.isna().all()
    assert found.left_out == tmp_path / "E.left_out.csv"
    missing = reasons(found.left_out)
    assert missing["flower.jpg"] == ("no face", "no face found")
    assert missing["paper.jpg"] == ("unreadable", "a PDF document; save its page as a picture")
    assert missing["film.jpg"] == ("unreadable", "a video; save a frame of it as a picture")
    assert missing["cut.jpg"][0] == "unreadable"
    assert len(missing) == 4
    one = frame.iloc[0]
    left, top, right, bottom = one.box
    assert left < 221 < 306 < right  # the eyes
    assert top < 189 < bottom
    np.testing.assert_allclose(one.landmarks[:4], [221, 189, 306, 187], atol=8)
    assert one.face == 1
    assert 0.9 < one.face_score <= 1
    assert 0.3 < one.quality <= 1
    (expected,) = fm.load_embedder(of_faces).embed([photographs / "hopper, grace.png"])
    np.testing.assert_allclose(one.embedding, expected, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["E.left_out.csv", "E.parquet"]


def test_every_face_has_a_row_of_its_own(of_faces: Path, photographs: Path, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(photographs / "two.jpg", only)
    found = embed(only, weights=of_faces, out=tmp_path / "E.csv", every_face=True, **PLAIN)
    frame = found.to_frame()
    assert frame.face.tolist() == [1, 2]
    assert frame.path.tolist() == ["two.jpg"] * 2
    assert abs(frame.left[0] - frame.left[1]) > 100
    one = embed(only, weights=of_faces, out=tmp_path / "one.csv", **PLAIN)
    assert one.rows == 1
    assert one.left_out is None
    strict = {"min_quality": 0.999}
    with pytest.raises(
        DataError, match=r"has a face to embed, the first is two.jpg .*below the 0.999 asked for"
    ):
        embed(only, weights=of_faces, out=tmp_path / "strict.csv", **PLAIN | strict)
    assert "strict.csv.parts" not in [path.name for path in tmp_path.iterdir()]


def test_rows_do_not_depend_on_processes(of_faces: Path, photographs: Path, tmp_path: Path) -> None:
    files = [
        embed(
            photographs,
            weights=of_faces,
            out=tmp_path / f"{workers}.npz",
            **PLAIN | {"workers": workers, "batch_size": 2},
        )
        for workers in (0, 2)
    ]
    assert files[0].file.read_bytes() == files[1].file.read_bytes()


def test_pictures_of_no_faces_are_embedded_as_eval_does(
    untrained: Path, table: Path, faces: Path, tmp_path: Path
) -> None:
    found = embed(faces, weights=untrained, out=tmp_path / "E.npz", **PLAIN | {"batch_size": 16})
    ours, wanted = EmbeddingTable.load(found.file), EmbeddingTable.load(table)
    np.testing.assert_array_equal(ours.embeddings, wanted.embeddings)
    assert ours.paths.tolist() == wanted.paths.tolist()
    assert ours.identities.tolist() == wanted.identities.tolist()
    assert ours.weights == wanted.weights != ""
    with np.load(found.file) as stored:
        assert set(stored["face"].tolist()) == {0}
        assert np.isnan(stored["landmarks"]).all()
        assert stored["landmarks"].shape == (96, 5, 2)
    assert found.table().paths.tolist() == wanted.paths.tolist()


@pytest.mark.parametrize("suffix", [".npz", ".parquet", ".csv"])
def test_the_three_files_say_the_same(
    untrained: Path, faces: Path, tmp_path: Path, suffix: str, small_parts: None
) -> None:
    """With a csv of groups, and a name that is no UTF-8."""
    people = Path(shutil.copytree(faces, tmp_path / "people"))
    odd = next(people.rglob("*.jpg"))
    os.rename(odd, os.fsencode(odd.parent) + b"/\xff.jpg")
    found = embed(people, weights=untrained, out=tmp_path / f"E{suffix}", **PLAIN)
    whole = embed(people, weights=untrained, out=tmp_path / "W.npz", **PLAIN).table()
    assert found.rows == len(whole) == 96
    if suffix == ".csv":
        text = found.file.read_bytes().decode("utf-8", "surrogateescape")
        lines = list(csv.DictReader(text.splitlines()))
        values = np.array(
            [[line[f"e{i}"] for i in range(whole.embeddings.shape[1])] for line in lines], np.float32
        )
        assert [line["path"] for line in lines] == whole.paths.tolist()
        assert {line["quality"] for line in lines} == {""}
        np.testing.assert_array_equal(values, whole.embeddings)
        return
    table = EmbeddingTable.load(found.file)
    np.testing.assert_array_equal(table.embeddings, whole.embeddings)
    assert table.identities.tolist() == whole.identities.tolist()
    shown = [
        path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for path in whole.paths
    ]
    assert table.paths.tolist() == (shown if suffix == ".parquet" else whole.paths.tolist())
    assert table.weights == whole.weights


def test_columns_of_a_csv_are_kept(untrained: Path, faces: Path, tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(faces)) for path in faces.rglob("*.jpg"))[:6]
    rows = [f"{name},{name.split('/')[0]},{i % 2}" for i, name in enumerate(names)]
    (faces / "few.csv").write_text("\n".join(["path,identity,light", *rows]))
    try:
        for suffix in (".npz", ".parquet"):
            found = embed(faces / "few.csv", weights=untrained, out=tmp_path / f"E{suffix}", **PLAIN)
            table = found.table()
            assert table.groups["light"].tolist() == [str(i % 2) for i in range(6)]
    finally:
        (faces / "few.csv").unlink()


# Kills, full disks, several processes


def die_at(call: int) -> None:
    """Let this process be killed before its nth call that changes names or makes bytes last."""
    count = [0]

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return run

    for name in ("replace", "fsync", "unlink", "rmdir"):
        setattr(os, name, guarded(getattr(os, name)))


def test_killed_at_any_change_of_a_file_it_goes_on(
    untrained: Path, faces: Path, tmp_path: Path, small_parts: None
) -> None:
    few = tmp_path / "people"
    for person in sorted(faces.iterdir())[:8]:
        shutil.copytree(person, few / person.name)
    (few / "broken.jpg").write_bytes(b"no picture")
    job: dict[str, Any] = {"weights": untrained, **PLAIN}
    whole = embed(few, out=tmp_path / "whole.npz", **job)
    assert (whole.rows, whole.unreadable) == (48, 1)
    call = 0
    while True:
        call += 1
        out = tmp_path / f"{call}.npz"

        def begin(out: Path = out, call: int = call) -> None:
            die_at(call)
            embed(few, out=out, **job)

        if in_a_child(begin) == 0:
            break
        try:
            again = embed(few, out=out, **job)
        except ConfigError as error:  # killed after all was done, and the record of it was gone
            assert "is there already" in str(error)  # noqa: PT017
            (tmp_path / f"{call}.npz.parts").rmdir()  # and nothing is left in it
        else:
            assert (again.rows, again.unreadable, again.left_out) == (
                48,
                1,
                tmp_path / f"{call}.left_out.csv",
            )
        assert out.read_bytes() == whole.file.read_bytes(), call
        assert reasons(tmp_path / f"{call}.left_out.csv") == reasons(tmp_path / "whole.left_out.csv")
        left = {path.name for path in tmp_path.iterdir() if f"{call}." in path.name}
        assert left <= {f"{call}.npz", f"{call}.left_out.csv"}, call
    assert call > 20  # it was killed in all of them


def test_parts_that_are_there_are_not_made_again(
    untrained: Path,
    faces: Path,
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    out, job = tmp_path / "E.npz", {"weights": untrained, **PLAIN}
    real, saved = parts_room.Parts.save, []

    def save(self: Any, number: int, part: Any) -> None:
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(number)
        real(self, number, part)

    monkeypatch.setattr(parts_room.Parts, "save", save)
    with pytest.raises(KeyboardInterrupt):
        embed(faces, out=out, **job)
    assert not out.exists()
    other = {"flip": True}
    with pytest.raises(ConfigError, match="holds parts made with other flip: go on with the same"):
        embed(faces, out=out, **job | other)
    saved.clear()
    embed(faces, out=out, **job)
    assert saved == [3, 4]
    assert "3 of 5 parts are in" in capsys.readouterr().out
    assert not (tmp_path / "E.npz.parts").exists()


def test_a_second_job_waits_for_no_first(untrained: Path, faces: Path, tmp_path: Path) -> None:
    held = parts_room.Parts(tmp_path / "E.npz", 96)
    held.begin({})
    try:
        with pytest.raises(ConfigError, match="holds parts made with other"):
            embed(faces, out=tmp_path / "E.npz", weights=untrained, **PLAIN)
        same = parts_room.Parts(tmp_path / "E.npz", 96)
        with pytest.raises(ConfigError, match="is being written by another run"):
            same.begin({})
    finally:
        held.release()


def test_a_full_disk_is_said_and_the_job_goes_on_later(
    untrained: Path, faces: Path, tmp_path: Path, small_parts: None
) -> None:
    """Of a limit of the system's: what is written is cut as on a full disk."""
    whole = embed(faces, out=tmp_path / "whole.npz", weights=untrained, **PLAIN)
    size = whole.file.stat().st_size
    for most in (size // 20, size // 2):  # no part fits; the parts fit, the table does not
        out = tmp_path / f"{most}.npz"

        def begin(out: Path = out, most: int = most) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            with pytest.raises(OSError, match="File too large") as caught:
                embed(faces, out=out, weights=untrained, **PLAIN)
            assert caught.value.errno == errno.EFBIG
            assert caught.value.filename is not None
            assert not out.exists()

        assert in_a_child(begin) == 0
        again = embed(faces, out=out, weights=untrained, **PLAIN)
        assert again.file.read_bytes() == whole.file.read_bytes()


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_leave_the_table_of_one(
    world: int, untrained: Path, faces: Path, tmp_path: Path, small_parts: None
) -> None:
    job: dict[str, Any] = {"weights": untrained, **PLAIN}
    whole = embed(faces, out=tmp_path / "one.npz", **job)
    results, out = tmp_path / "results", tmp_path / "several.npz"

    def begin(rank: int) -> None:
        found = embed(faces, out=out, **job)
        (tmp_path / f"{rank}.json").write_text(json.dumps([found.rows, str(found.file)]))

    assert in_processes(world, begin, results) == [0] * world, results.read_text()
    assert out.read_bytes() == whole.file.read_bytes()
    assert json.loads((tmp_path / "1.json").read_text()) == [96, str(out)]


# What is refused


@pytest.mark.parametrize("what", ["the weights", "the images", "batch_size="])
def test_processes_with_other_inputs_are_refused(
    what: str, untrained: Path, faces: Path, tmp_path: Path
) -> None:
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        shutil.copytree(untrained, tmp_path / str(rank) / "weights")
        shutil.copytree(faces, tmp_path / str(rank) / "faces")
    if what == "the weights":
        embedder = load_embedder(untrained)
        with torch.no_grad():
            next(embedder.parameters()).mul_(2)
        shutil.rmtree(tmp_path / "1" / "weights")
        save_weights(tmp_path / "1" / "weights", embedder, provenance={}, metrics={})
    if what == "the images":
        next((tmp_path / "1" / "faces").rglob("*.jpg")).unlink()

    def begin(rank: int) -> None:
        os.chdir(tmp_path / str(rank))
        options = PLAIN | {"batch_size": 8 + rank * (what == "batch_size=")}
        with pytest.raises(ConfigError, match=f"process 1 has another value of {what} than process 0"):
            embed("faces", out=tmp_path / "E.npz", weights="weights", **options)

    assert in_processes(2, begin, tmp_path / "said") == [0, 0], (tmp_path / "said").read_text()
    assert not (tmp_path / "E.npz").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "E.txt"], "--out E.txt: a table ends in .parquet, .npz, .csv"),
        (["--out", "there.csv"], "there.csv is there already, and nothing is overwritten"),
        (["--out", "E.csv", "--runtime", "openvino"], "openvino"),
        (
            ["--out", "E.csv", "--detector", "nothing"],
            "--detector is given, but these weights are not known to be of faces",
        ),
        (
            ["--out", "E.csv", "--faces", "photographs", "--detector", "nothing"],
            "--detector is 'nothing'; name it as",
        ),
        (["--out", "E.csv", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--out", "beside.csv"], "beside.left_out.csv is there already, and nothing is overwritten"),
    ],
)
def test_a_slip_is_one_line(
    options: list[str],
    message: str,
    untrained: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "beside.left_out.csv").write_text("mine")
    with pytest.raises(SystemExit) as status:
        facemetric.cli.main(["embed", str(faces), "--weights", str(untrained), *options])
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.left_out.csv", "there.csv"]
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_a_video_as_data_is_refused(untrained: Path, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(
        DataError, match=r"film.mp4: is a video; save a frame of it as a picture, and give a folder"
    ):
        embed(tmp_path / "film.mp4", weights=untrained, out=tmp_path / "E.npz", **PLAIN)


def test_a_folder_of_that_name_is_left_alone(untrained: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "E.npz.parts").mkdir()
    (tmp_path / "E.npz.parts" / "letter.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a folder of facemetric embed; name another out="):
        embed(faces, weights=untrained, out=tmp_path / "E.npz", **PLAIN)
    assert (tmp_path / "E.npz.parts" / "letter.txt").read_text() == "mine"


def test_a_damaged_part_is_named(untrained: Path, faces: Path, tmp_path: Path, small_parts: None) -> None:
    parts = parts_room.Parts(tmp_path / "E.npz", 96)
    parts.folder.mkdir()
    parts.file(0).write_bytes(b"PK damaged")
    with pytest.raises(DataError, match=r"00000000.npz is damaged .*; remove it and start again"):
        parts.read(0)


# The table in other programs' hands


@pytest.mark.parametrize("number", range(5))
def test_the_readmes_lines_open_the_table(
    number: int, untrained: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    for package in ("faiss", "usearch", "duckdb"):
        if f"import {package}" in blocks[number] or f"from {package}" in blocks[number]:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    found: EmbeddedFile | None = None
    for suffix in (".npz", ".parquet"):
        found = embed(faces, weights=untrained, out=f"E{suffix}", **PLAIN)
    assert found is not None
    names: dict[str, Any] = {}
    exec(blocks[number], names)
    emb_ND = found.table().embeddings
    scores = emb_ND @ emb_ND.T
    if "frame" in names:
        assert len(names["frame"]) == 96
        np.testing.assert_array_equal(np.stack(names["frame"].embedding), emb_ND)
    if "neighbours" in names:
        np.fill_diagonal(scores, -2)
        np.testing.assert_allclose(scores[np.arange(96), names["neighbours"][:, 0]], scores.max(1), atol=1e-6)
    if "rows" in names:
        assert names["rows"][0, 0] == 0
        np.testing.assert_allclose(names["scores"][0], np.sort(scores[0])[::-1][:3], atol=1e-5)
    if "found" in names:
        np.testing.assert_allclose(1 - names["found"].distances, np.sort(scores[0])[::-1][:3], atol=1e-2)
    if "nearest" in names:
        upper = np.sort(scores[np.triu_indices(96, 1)])[::-1][:5]
        np.testing.assert_allclose(names["nearest"].score, upper, atol=1e-5)
