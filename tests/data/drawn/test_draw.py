"""Drawn faces: the same numbers give the same picture, traits stay, nuisance rules the pixels."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import drawn_arrays
from PIL import Image

from facemetric.data.drawn import draw as drawn
from facemetric.data.drawn.draw import (
    MIN_SIZE,
    draw_face,
    draw_faces,
    face_identity,
    face_jpeg,
    face_nuisance,
)
from facemetric.data.drawn.pen import Pen, mirrored, oval, ramp, ribbon, smooth
from facemetric.data.drawn.traits import Identity, Nuisance
from facemetric.errors import ConfigError

ROOT = Path(__file__).parents[3]


def middle(kind: type, **changes: float):
    """A face or scene with every number in the middle of its range."""
    middles = {f.name: (f.metadata["low"] + f.metadata["high"]) / 2 for f in dataclasses.fields(kind)}
    return kind(**(middles | {"pattern": 1} | changes))


# a face with everything on it, lit evenly and held still
FACE = middle(Identity, beard=0.6, moustache=0.5, freckles=0.6, hair_length=0.9, crease=0.5, blush=0.5)
SCENE = middle(Nuisance, blur=-1, noise=0, saturation=1, gain=1, slope=0.3, glasses=-1, mouth_open=0.5)


def pixels(face: Identity, scene: Nuisance, size: int = 96) -> np.ndarray:
    return np.asarray(draw_face(face, scene, size)).astype(float)


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def grey_embedding(pictures: np.ndarray) -> np.ndarray:
    """Grey 32 x 32 pixels less their mean, on the unit sphere: what no learning can do."""
    small = [
        np.asarray(Image.fromarray(p).convert("L").resize((32, 32), Image.Resampling.BOX)) for p in pictures
    ]
    flat = np.stack(small).reshape(len(small), -1).astype(float)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def equal_error(emb_ND: np.ndarray, labels: np.ndarray) -> float:
    score = emb_ND @ emb_ND.T
    a, b = np.triu_indices(len(labels), 1)
    same, score = labels[a] == labels[b], score[a, b]
    order = np.argsort(-score)
    accepted, false = np.cumsum(same[order]), np.cumsum(~same[order])
    missed, false = 1 - accepted / same.sum(), false / (~same).sum()
    at = np.argmin(abs(missed - false))
    return float((missed[at] + false[at]) / 2)


# --- one picture


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert face_jpeg(3, 5, 7, 48) == face_jpeg(3, 5, 7, 48)
    others = {face_jpeg(*numbers, 48) for numbers in [(3, 5, 7), (4, 5, 7), (3, 6, 7), (3, 5, 8)]}
    assert len(others) == 4


@pytest.mark.parametrize("size", [MIN_SIZE, 33, 64, 112, 160])
def test_pictures_have_the_size_asked_for(size: int) -> None:
    picture = draw_face(FACE, SCENE, size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))
    assert np.asarray(picture).std() > 20


def test_sizes_show_the_same_scene() -> None:
    large = draw_face(FACE, SCENE, 192).resize((64, 64), Image.Resampling.BOX)
    assert abs(np.asarray(large).astype(float) - pixels(FACE, SCENE, 64)).mean() < 6


def test_traits_belong_to_the_identity_and_nuisance_to_the_picture() -> None:
    assert face_identity(0, 4) == face_identity(0, 4)
    for kind, one, other in (
        (Identity, face_identity(0, 4), face_identity(0, 5)),
        (Identity, face_identity(0, 4), face_identity(1, 4)),
        (Nuisance, face_nuisance(0, 4, 0), face_nuisance(0, 4, 1)),
        (Nuisance, face_nuisance(0, 4, 0), face_nuisance(0, 5, 0)),
    ):
        alike = [f.name for f in dataclasses.fields(kind) if getattr(one, f.name) == getattr(other, f.name)]
        assert not alike


def test_traits_fill_their_ranges() -> None:
    faces = [face_identity(1, number) for number in range(300)]
    for trait in dataclasses.fields(Identity):
        low, high = trait.metadata["low"], trait.metadata["high"]
        values = (np.array([getattr(face, trait.name) for face in faces]) - low) / (high - low)
        assert values.min() >= 0
        assert values.max() <= 1
        assert abs(np.quantile(values, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.12


@pytest.mark.parametrize("trait", dataclasses.fields(Identity), ids=lambda trait: trait.name)
def test_every_trait_shows(trait: dataclasses.Field) -> None:
    ends = [dataclasses.replace(FACE, **{trait.name: trait.metadata[end]}) for end in ("low", "high")]
    difference = abs(pixels(ends[0], SCENE) - pixels(ends[1], SCENE)).max(2)
    assert (difference > 12).sum() >= 8  # pixels of 96 x 96


IN_THE_SCENE = [trait for trait in dataclasses.fields(Nuisance) if trait.name != "jpeg_quality"]


@pytest.mark.parametrize("trait", IN_THE_SCENE, ids=lambda trait: trait.name)
def test_every_nuisance_shows(trait: dataclasses.Field) -> None:
    scene = dataclasses.replace(SCENE, glasses=0.5) if trait.name == "glasses_tone" else SCENE
    low, high = trait.metadata["low"], trait.metadata["high"]
    if trait.name in ("slope_angle", "clothes_hue"):
        high = (low + high) / 2  # a whole turn would come back to the start
    ends = [dataclasses.replace(scene, **{trait.name: end}) for end in (low, high)]
    difference = abs(pixels(FACE, ends[0]) - pixels(FACE, ends[1])).max(2)
    assert (difference > 12).sum() >= 8


def test_jpeg_quality_shows_in_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    for quality in (50, 95):
        scene = dataclasses.replace(SCENE, jpeg_quality=quality)
        monkeypatch.setattr(drawn, "face_nuisance", lambda *_, scene=scene: scene)
        lengths.append(len(face_jpeg(0, 0, 0, 64)))
    assert lengths[0] < 0.7 * lengths[1]


def test_turning_the_head_moves_the_features_and_not_the_outline() -> None:
    turned = Pen(FACE, dataclasses.replace(SCENE, yaw=0.3), 100)
    still = Pen(FACE, dataclasses.replace(SCENE, yaw=0.0), 100)
    nose, ear = np.array([[0.0, 0.1]]), np.array([[FACE.head_width, 0.0]])
    shift = (turned.on_face(nose, 0.15) - still.on_face(nose, 0.15))[0]
    unit = SCENE.scale * 100
    depth = 0.62 * np.sqrt(1 - (0.1 / 1.12) ** 2) + 0.15
    assert shift == pytest.approx([np.sin(0.3) * depth * unit, 0], abs=1e-9)
    assert turned.flat(ear) == pytest.approx(still.flat(ear))


def test_roll_and_shift_place_the_face() -> None:
    scene = dataclasses.replace(SCENE, roll=np.pi / 2, scale=0.4, shift_x=0.1, shift_y=-0.05)
    place = Pen(FACE, scene, 100).flat(np.array([[0.0, 0.0], [1.0, 0.0]]))
    assert place == pytest.approx(np.array([[60, 45], [60, 85]]))  # x to the right turns down, clockwise


# --- curves


def test_a_smooth_curve_passes_its_control_points() -> None:
    control = [(0.0, 0.0), (1.0, 2.0), (3.0, 1.0), (4.0, -1.0)]
    closed, opened = smooth(control, steps=5), smooth(control, closed=False, steps=5)
    assert closed.shape == (20, 2)
    assert opened.shape == (16, 2)
    assert closed[::5] == pytest.approx(np.array(control))
    assert opened[::5] == pytest.approx(np.array(control))
    line = smooth([(float(t), 2.0 * t) for t in range(5)], closed=False)
    along = np.arange(5, 16) / 5  # a straight line stays straight, and evenly spaced
    assert line[5:-5] == pytest.approx(np.stack([along, 2 * along], 1))


def test_small_shapes() -> None:
    assert ramp(np.array([[0, 0, 0], [10, 20, 30], [100, 100, 100]]), 0.25) == pytest.approx([5, 10, 15])
    assert ramp(np.array([[0, 0, 0], [10, 20, 30]]), 1.0) == pytest.approx([10, 20, 30])
    assert mirrored([(0, 1), (2, 3)]) == [(0, 1), (2, 3), (-2, 3)]
    band = ribbon(np.array([[0.0, 0.0], [1.0, 0.0]]), 0.4)
    assert band == pytest.approx(np.array([[0, -0.2], [1, -0.2], [1, 0.2], [0, 0.2]]))
    assert abs(oval(1, 2, 3, 4) - np.array([1, 2])).max(0) == pytest.approx([3, 4])


# --- sets of pictures


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    one = files(draw_faces(tmp_path / "one", identities=5, images=2, size=32, workers=1, progress=False))
    two = files(draw_faces(tmp_path / "two", identities=5, images=2, size=32, workers=2, progress=False))
    assert list(one) == [f"drawn_{i:04d}/{j:04d}.jpg" for i in range(1, 6) for j in (1, 2)]
    assert one == two


def test_more_identities_or_images_leave_the_others_as_they_are(tmp_path: Path) -> None:
    few = files(
        draw_faces(tmp_path / "few", identities=2, images=2, size=32, seed=9, workers=1, progress=False)
    )
    more = files(
        draw_faces(tmp_path / "more", identities=3, images=4, size=32, seed=9, workers=1, progress=False)
    )
    assert few.items() <= more.items()
    assert len(more) == 12


def test_the_bar_shows_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_faces(tmp_path / "a", identities=1, images=1, size=16, workers=1, progress=False)
    assert capsys.readouterr().err == ""
    draw_faces(tmp_path / "b", identities=1, images=1, size=16, workers=1)
    assert "drawing faces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"identities": 0}, "identities is 0; give at least 1"),
        ({"images": -2}, "images is -2; give at least 1"),
        ({"size": 8}, f"size is 8; give at least {MIN_SIZE}"),
        ({"seed": -1}, "seed is -1; give at least 0"),
    ],
)
def test_numbers_that_cannot_work_are_named(tmp_path: Path, numbers: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        draw_faces(tmp_path / "out", **numbers)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_an_oserror_and_leaves_no_half_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole = Path.write_bytes

    def full_after_two(path: Path, data: bytes) -> int:
        if len(files(tmp_path)) < 2:
            return whole(path, data)
        whole(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_after_two)
    with pytest.raises(OSError, match="No space left"):
        draw_faces(tmp_path, identities=3, images=2, size=32, workers=workers, progress=False)
    left = files(tmp_path)
    assert left == {f"drawn_0001/{j:04d}.jpg": face_jpeg(0, 0, j - 1, 32) for j in (1, 2)}


def test_pixels_tell_identities_apart_only_without_nuisance() -> None:
    """EER of raw pixels: above 0.3 in the pictures as drawn (chance: 0.5), below 0.1 in one shared scene."""
    pictures, labels = drawn_arrays(50, 5, 48, 77)
    assert equal_error(grey_embedding(pictures), labels) > 0.3
    scenes = [SCENE, dataclasses.replace(SCENE, noise=0.03, gain=1.1)]
    twins = [np.asarray(draw_face(face_identity(77, i), scene, 48)) for i in range(50) for scene in scenes]
    emb = grey_embedding(np.array(twins))
    emb -= emb.mean(0)  # the scene they share
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    assert equal_error(emb, np.repeat(np.arange(50), 2)) < 0.1


def test_pictures_are_neither_black_nor_white() -> None:
    pictures, _ = drawn_arrays(60, 2, 32, 5)
    level = pictures.reshape(120, -1).mean(1)
    assert level.min() > 20
    assert level.max() < 235


def test_the_tool_draws_a_folder_and_a_sheet(tmp_path: Path) -> None:
    def tool(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/draw_faces.py"), str(tmp_path / "faces"), *options]
        return subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    done = tool("--identities=2", "--images=3", "--size=32", "--workers=1", f"--sheet={tmp_path}/sheet.png")
    assert done.returncode == 0, done.stderr
    assert len(files(tmp_path / "faces")) == 6
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (64, 96, 3)
    assert np.array_equal(sheet[32:, 64:], np.asarray(Image.open(tmp_path / "faces/drawn_0002/0003.jpg")))
    wrong = tool("--size=3")
    assert (wrong.returncode, wrong.stderr) == (2, "draw_faces: drawn faces: size is 3; give at least 16\n")
