"""Blended faces: only people whom a training may know, nobody with himself, and a seed gives its pictures again."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import blend_faces
import numpy as np
import pytest
import torch
from PIL import Image

from facemetric.data.index import read_index
from facemetric.evaluation.table import EmbeddingTable

HELD, LEFT_OUT = 4, 2  # identities of 16 that no blend may show


@pytest.fixture(scope="module")
def run(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a training that followed a teacher, with people held back and left out."""
    folder = tmp_path_factory.mktemp("run")
    index = read_index([str(faces)])
    rng = np.random.default_rng(0)
    rows = 2 + rng.normal(size=(len(index.identities), 8))[index.identity]
    names = np.array([index.name(i) for i in range(len(index))])
    EmbeddingTable(rows, np.array(["x"] * len(index)), names).save(folder / "teacher.npz")
    people = index.identities
    (folder / "val.txt").write_text("".join(f"{name}\n" for name in people[:HELD]))
    (folder / "out.txt").write_text("".join(f"{name}\n" for name in people[HELD : HELD + LEFT_OUT]))
    (folder / "config.toml").write_text(
        f'data = ["{faces}"]\nteacher = ["{folder / "teacher.npz"}"]\nval_identities = "{folder / "val.txt"}"\n'
        f'leave_out = "{folder / "out.txt"}"\narch = "test_resnet"\nout = "{folder}"\n'
    )
    return folder


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["blend_faces", *map(str, arguments)])
    blend_faces.main()


def test_the_people_are_those_of_the_training(run: Path) -> None:
    pictures = blend_faces.read_pictures(run)
    assert len(pictures.images) == (16 - HELD - LEFT_OUT) * 6
    assert len(set(pictures.person.tolist())) == 16 - HELD - LEFT_OUT
    held = set((run / "val.txt").read_text().split()) | set((run / "out.txt").read_text().split())
    shown = {pictures.images.name(i).split("/")[0] for i in range(len(pictures.images))}
    assert not shown & held
    assert pictures.chance.sum() == pytest.approx(1)
    first, second = blend_faces.draw_pairs(pictures, 500, np.random.default_rng(3))
    assert (pictures.person[first] != pictures.person[second]).all()
    alike = (pictures.teacher_NT[first] * pictures.teacher_NT[second]).sum(1).mean()
    drawn = (pictures.teacher_NT[first] * pictures.teacher_NT[np.roll(second, 1)]).sum(1).mean()
    assert alike > drawn  # half of the partners are the nearest of others


def test_pictures_without_a_name_are_a_quarter(run: Path, faces: Path, tmp_path: Path) -> None:
    table = EmbeddingTable.load(run / "teacher.npz")
    names = np.array([f"more/{name}" for name in table.paths])
    EmbeddingTable(table.embeddings, table.identities, names).save(tmp_path / "more.npz")
    text = (run / "config.toml").read_text().replace('.npz"]', f'.npz", "{tmp_path / "more.npz"}"]')
    (tmp_path / "config.toml").write_text(f'unlabelled = ["more={faces}"]\n{text}')
    pictures = blend_faces.read_pictures(tmp_path)
    first = pictures.images.first
    assert len(pictures.images) == first + 16 * 6
    assert pictures.chance[:first].sum() == pytest.approx(0.75)
    assert pictures.chance.sum() == pytest.approx(1)
    assert len(np.unique(pictures.person[first:])) == 16 * 6  # each a person of its own
    shown = pictures.pixels(np.array([0, first]), 32)
    assert shown.shape == (2, 3, 32, 32)


def test_nobody_is_blended_with_himself_where_others_are_rare(run: Path) -> None:
    pictures = blend_faces.read_pictures(run)
    person = np.where(np.arange(len(pictures.chance)) < len(pictures.chance) - 1, 0, 1)
    chance = np.where(person == 0, 1.0, 1e-6)
    rare = pictures._replace(person=person, chance=chance / chance.sum())
    first, second = blend_faces.draw_pairs(rare, 300, np.random.default_rng(0))
    assert (person[first] != person[second]).all()


def test_each_kind_is_what_it_says() -> None:
    """A black and a white picture: what share of the white one is seen where."""
    black, white = torch.zeros(60, 3, 32, 32), torch.full((60, 3, 32, 32), 255.0)
    kinds = np.repeat([0, 1, 2], 20)
    made = blend_faces.blend(black, white, kinds, torch.Generator().manual_seed(0)) / 255
    mean, regions, one = made[:20], made[20:40], made[40:]
    assert (mean.amax((1, 2, 3)) - mean.amin((1, 2, 3)) < 1e-3).all()
    assert mean.min() > 0.29
    assert mean.max() < 0.71
    assert regions.amin((1, 2, 3)).max() < 0.3  # somewhere the one
    assert regions.amax((1, 2, 3)).min() > 0.7  # elsewhere the other
    assert one.max() == 0


def test_bending_moves_little() -> None:
    ramp = torch.arange(112.0).expand(8, 3, 112, 112)
    moved = (blend_faces.bend(ramp, torch.Generator().manual_seed(1)) - ramp)[..., 20:-20].abs()
    assert 0.3 < moved.mean() < 4
    assert moved.max() < 20


def test_a_seed_gives_its_pictures_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(
            monkeypatch, run, "--count", 130, "--seed", seed, "--side", 32, "--out", tmp_path / f"{name}.tar"
        )
        with tarfile.open(tmp_path / f"{name}.tar") as tar:
            contents.append([tar.extractfile(member).read() for member in tar])  # type: ignore[union-attr]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]
    assert len(contents[0]) == len(set(contents[0])) == 130
    assert Image.open(io.BytesIO(contents[0][0])).size == (32, 32)
    names = read_index([str(tmp_path / "a.tar")], loose=True)
    assert names.name(129) == "blends/1_0000129.jpg"
    assert "130 pictures" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(monkeypatch, run, "--out", tmp_path / "a.tar")
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (["--count", 0], "--count is 0; give 1 or more"),
        (["--seed", -1], "--seed is -1; give 0 or more"),
        ([], "mend it, or name it in --leave-out-images"),
    ],
)
def test_what_cannot_be_is_told(
    spoil: list[object],
    why: str,
    run: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(faces, tmp_path / "faces")
    text = (
        (run / "config.toml").read_text().replace(f'data = ["{faces}"]', f'data = ["{tmp_path / "faces"}"]')
    )
    (tmp_path / "config.toml").write_text(text)
    if not spoil:
        for image in (tmp_path / "faces").glob("*/*"):
            image.write_bytes(b"no picture")
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, *spoil, "--out", tmp_path / "a.tar")
    assert why in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tar*"))


def test_a_run_without_a_teacher_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (run / "config.toml").read_text()
    (tmp_path / "config.toml").write_text("\n".join(x for x in text.splitlines() if "teacher" not in x))
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, "--out", tmp_path / "a.tar")
    assert "is not of a stage one with a teacher" in capsys.readouterr().err
    (tmp_path / "config.toml").write_text(f"align = true\n{text}")
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, "--out", tmp_path / "a.tar")
    assert "cut the faces by `facemetric align`" in capsys.readouterr().err
    assert not (tmp_path / "a.tar").exists()
