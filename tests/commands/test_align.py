"""Loose photographs to aligned faces: the geometry, the csv, and a real face (Grace Hopper's, of matplotlib)."""

from __future__ import annotations

import csv
import math
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import align_crops
import align_faces
import numpy as np
import pytest
import sklearn.datasets
from align_crops import TEMPLATE, Face, Options, apply, choose, cut_out, inverse, similarity
from align_record import Line, Record
from matplotlib import get_data_path
from PIL import Image

from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.errors import ConfigError

HOPPER = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
FLOWER = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
OPTIONS = Options(112, 640, 0.9, "prominent", "take", 0.0, 95)


def turned(degrees: float, scale: float, about: tuple[float, float], to: tuple[float, float]) -> np.ndarray:
    """(2, 3): a turn and a scale about a point that is brought to another."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack([turn, np.array(to) - turn @ np.array(about)])


def agreement(one: Image.Image, other: Image.Image) -> float:
    """Correlation of the pixels, -1..1."""
    return float(np.corrcoef(np.asarray(one, float).ravel(), np.asarray(other, float).ravel())[0, 1])


# Geometry


def test_similarity_finds_the_map_that_was_there() -> None:
    there = turned(-37, 2.3, (56, 60), (200, 91))
    np.testing.assert_allclose(similarity(TEMPLATE, apply(there, TEMPLATE)), there, atol=1e-9)
    np.testing.assert_allclose(apply(inverse(there), apply(there, TEMPLATE)), TEMPLATE, atol=1e-9)


def test_similarity_is_the_least_squares_solution_and_never_mirrors() -> None:
    rng = np.random.default_rng(0)
    for points in (TEMPLATE * 2 + rng.normal(0, 9, (5, 2)), TEMPLATE * [-1, 1]):
        rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points]
        a, b, c, d = np.linalg.lstsq(np.reshape(rows, (10, 4)), TEMPLATE.ravel(), rcond=None)[0]
        found = similarity(points, TEMPLATE)
        np.testing.assert_allclose(found, [[a, -b, c], [b, a, d]], atol=1e-8)
        assert np.linalg.det(found[:, :2]) > 0


@pytest.mark.parametrize(
    ("degrees", "scale"), [(7, 1), (25, 0.9), (-50, 1.7), (10, 0.45), (170, 0.2), (3, 0.06)]
)
def test_a_crop_shows_what_the_map_says(degrees: float, scale: float) -> None:
    """A ramp has a known brightness at every point: an eighth of the crop's pixel off would be seen."""
    side = round(120 / scale)
    y, x = np.mgrid[:side, :side]
    slope = 2 * scale
    ramp = np.stack([x * slope, y * slope, (x + y) * slope / 2], 2)
    dither = np.random.default_rng(0).uniform(size=ramp.shape)  # rounding would lean to one side
    there = turned(degrees, scale, (side / 2 + 0.3, side / 2 - 0.1), (40, 40))
    crop = np.asarray(cut_out(Image.fromarray((ramp + dither).astype(np.uint8)), there, 80), float)
    rows, columns = np.mgrid[:80, :80]
    at = apply(inverse(there), np.stack([columns.ravel(), rows.ravel()], 1).astype(float)).reshape(80, 80, 2)
    inside = ((at > 4 / scale) & (at < side - 4 / scale)).all(2)
    assert inside.mean() > 0.5
    error = (crop - np.stack([at[..., 0], at[..., 1], at.mean(2)], 2) * slope)[inside]
    assert abs(error.mean(0) + 0.4).max() < 0.2  # PIL cuts off fractions of its 256 levels
    assert abs(error).max() < 3


def test_the_map_that_changes_nothing_gives_every_pixel_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    crop = cut_out(Image.fromarray(picture), turned(0, 1, (0, 0), (0, 0)), 40)
    np.testing.assert_array_equal(np.asarray(crop), picture)


def test_beyond_the_edge_the_last_pixel_is_repeated() -> None:
    picture = np.zeros((50, 60, 3), np.uint8)
    picture[:, :10], picture[:, -10:] = 200, 90
    crop = np.asarray(cut_out(Image.fromarray(picture), turned(0, 1, (0, 0), (40, 30)), 140))
    assert (crop[:, :38] == 200).all()
    assert (crop[:, 102:] == 90).all()
    there = turned(0, 1, (0, 0), (40, 30))
    assert align_crops.share_inside(there, Image.fromarray(picture), 140) == pytest.approx(50 * 60 / 140**2)


def test_of_several_faces_the_wanted_one_is_taken() -> None:
    def face(x: float, y: float, side: float) -> Face:
        return Face(np.array([x, y, x + side, y + side]), TEMPLATE, 1.0)

    small_in_the_middle, large_beside, huge_at_the_edge = face(95, 95, 10), face(60, 85, 60), face(0, 0, 65)
    faces = [small_in_the_middle, huge_at_the_edge, large_beside]
    assert choose(faces, (200, 200), "central") is small_in_the_middle
    assert choose(faces, (200, 200), "largest") is huge_at_the_edge
    assert choose(faces, (200, 200), "prominent") is large_beside


def test_a_blurred_crop_is_less_sharp() -> None:
    picture = Image.open(HOPPER).resize((112, 112))
    blurred = picture.resize((28, 28)).resize((112, 112))
    assert align_crops.sharpness(blurred) < 0.2 * align_crops.sharpness(picture)
    assert align_crops.sharpness(Image.new("RGB", (9, 9), "red")) == 0


# The csv


def test_a_torn_line_is_taken_out_and_the_photograph_done_again(tmp_path: Path) -> None:
    record = Record(tmp_path, {"size": 112})
    line = Line(
        "yes", "anna/1.jpg", "anna/1.jpg", 0.99, 2, [1, 2, 3, 4], [5.0] * 10, 30, 80, 1.0, "several, so"
    )
    record.add([line, Line("no", 'b,"o"/2.jpg', note="no face found")])
    whole = record.path.read_bytes()
    record.path.write_bytes(whole + b"anna/3.jpg,yes,anna/3")
    again = Record(tmp_path, {"size": 112})
    assert again.done == {"anna/1.jpg", 'b,"o"/2.jpg'}
    assert record.path.read_bytes() == whole
    assert again.counts == {"yes": 1, "no": 1, "several": 1, "kept": 1}


def test_a_folder_holds_crops_of_one_set_of_options(tmp_path: Path) -> None:
    Record(tmp_path, {"size": 112, "min_score": 0.9}).add([Line("no", "a/1.jpg")])
    with pytest.raises(ConfigError, match=r"made with --min-score 0\.9; say so again"):
        Record(tmp_path, {"size": 112, "min_score": 0.8})
    assert Record(tmp_path, {"size": 112, "min_score": 0.9}).done == {"a/1.jpg"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-score", "2"], "--min-score is 2.0; choose 0..1"),
        (["--size", "4"], "--size is 4; choose 16..4096"),
        (["--workers", "0"], "--workers is 0; choose 1..1024"),
    ],
)
def test_numbers_out_of_range_are_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align_faces.main([str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err == f"align_faces: {said}\n"


def test_names_that_would_meet_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("1.png", "1.png.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a" / name)
    assert align_faces.main([str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 2
    assert "a/1.png and a/1.png.jpg would share the crop's name 'a/1.png.jpg'" in capsys.readouterr().err


class Blind:
    """In place of the detector: finds no face, so that --keep-missed makes a crop of every photograph."""

    def faces(self, _: Image.Image) -> list[Face]:
        return []


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (9, 99, 199)).save(path)
    return path


def crops_of(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(align_faces, "Detector", Blind)
    return align_faces.main([str(data), "--out", str(out), "--keep-missed", "--workers", "1"])


def test_a_csv_that_lists_photographs_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each crop goes to its identity's folder, and the photographs stay as they were."""
    photos = [
        photograph(tmp_path / name) for name in ("p/DCIM/1.jpg", "p/DCIM/2.jpg", "q/3.jpg", "anna/deep/1.jpg")
    ]
    before = [path.read_bytes() for path in photos]
    (tmp_path / "lists").mkdir()
    lines = [f"{photos[0]},anna", "../p/DCIM/2.jpg,bob", "../q/3.jpg,anna"]
    (tmp_path / "lists/l.csv").write_text("\n".join(["path,identity", *lines]) + "\n")
    assert crops_of(tmp_path / "lists/l.csv", tmp_path / "out", monkeypatch) == 0
    index = read_index(tmp_path / "out")
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "anna/3.jpg", "bob/2.jpg"]
    (tmp_path / "m.csv").write_text("path,identity\nanna/deep/1.jpg,anna\np/DCIM/1.jpg,anna\n")
    assert crops_of(tmp_path / "m.csv", tmp_path / "out2", monkeypatch) == 0
    index = read_index(tmp_path / "out2")
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "anna/deep/1.jpg"]
    assert [path.read_bytes() for path in photos] == before


@pytest.mark.parametrize(
    ("listed", "out", "said"),
    [
        ("photos", "photos", "lies in the photographs' own folder"),
        ("photos", "photos/faces", "lies in the photographs' own folder"),
        ("photos/anna/1.jpg,anna", "photos", "anna/1.jpg is a photograph, which a crop would replace"),
        ("photos/bob/1.jpg,anna\nphotos/anna/1.jpg,carl", "photos", "anna/1.jpg is a photograph"),
        ("photos/anna/1.jpg,anna\nphotos/bob/1.jpg,anna", "out", "would share the crop's name 'anna/1.jpg'"),
        ("photos/anna/1.jpg,..", "out", "would lie in"),
        ("photos/anna/1.jpg,/photos", "out", "would lie in /photos, not in a folder below"),
    ],
)
def test_no_crop_goes_astray(
    listed: str, out: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    photos = [photograph(tmp_path / "photos" / who / "1.jpg") for who in ("anna", "bob")]
    before = [path.read_bytes() for path in photos]
    data = tmp_path / listed
    if "," in listed:
        data = tmp_path / "list.csv"
        data.write_text(f"path,identity\n{listed}\n")
    assert crops_of(data, tmp_path / out, monkeypatch) == 2
    assert said in capsys.readouterr().err
    assert [path.read_bytes() for path in photos] == before
    assert not (tmp_path / out / "aligned.csv").exists()


def test_a_crop_through_a_link_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    photo = photograph(tmp_path / "photos/anna/2.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/anna").symlink_to(photo.parent)
    assert crops_of(tmp_path / "photos", tmp_path / "out", monkeypatch) == 2
    assert "would lie in" in capsys.readouterr().err


# With the detector


@pytest.fixture(scope="module")
def detector() -> align_crops.Detector:
    pytest.importorskip("facenet_pytorch", reason="needs the detector: pip install -e '.[align]'")
    return align_crops.Detector()


@pytest.fixture(scope="module")
def hopper() -> Image.Image:
    return decode(HOPPER.read_bytes())


def test_the_extra_leaves_torch_alone(detector: align_crops.Detector) -> None:
    asked = [line for line in metadata.requires("facenet-pytorch") or () if not line.startswith("requests")]
    assert asked
    assert not [line for line in asked if "<" in line or "==" in line]


def test_the_face_is_brought_to_the_template(detector: align_crops.Detector, hopper: Image.Image) -> None:
    line, crop = align_crops.align(detector, hopper, OPTIONS)
    assert (line.found, line.faces, line.note) == ("yes", 1, "")
    assert crop is not None
    landmarks = np.reshape(line.landmarks or [], (5, 2))
    # Read off the photograph by eye: pupils, tip of the nose, corners of the mouth.
    by_eye = [[221, 189], [306, 187], [268, 236], [229, 281], [311, 280]]  # the eyes are 85 pixels apart
    assert np.linalg.norm(landmarks - by_eye, axis=1).max() < 8
    seen, score = detector.landmarks(
        cut_out(crop, turned(0, 1, (0, 0), (56, 56)), 224), align_crops.VIEWS + 56
    )
    assert np.linalg.norm(seen - 56 - TEMPLATE, axis=1).mean() < 4
    assert score > 0.9
    assert line.inside == 1


@pytest.mark.parametrize(("degrees", "scale"), [(0, 0.4), (0, 2.5), (20, 0.7), (-40, 1.0)])
def test_a_turned_and_scaled_photograph_gives_the_same_crop(
    detector: align_crops.Detector, hopper: Image.Image, degrees: float, scale: float
) -> None:
    wanted = align_crops.align(detector, hopper, OPTIONS)[1]
    side = round(800 * scale)
    there = turned(degrees, scale, (hopper.width / 2, hopper.height / 2), (side / 2, side / 2))
    line, crop = align_crops.align(detector, cut_out(hopper, there, side), OPTIONS)
    assert line.found == "yes"
    assert wanted is not None
    assert crop is not None
    assert agreement(crop, wanted) > 0.97


def test_a_folder_of_photographs(
    detector: align_crops.Detector, hopper: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Structure, EXIF, two faces, no face, a broken file; then the same command again, and with other options."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("grace", "pair", "nobody"):
        (photos / name / "deep").mkdir(parents=True)
    shutil.copy(HOPPER, photos / "grace" / "1.jpg")
    lying = Image.Exif()
    lying[0x0112] = 6  # to be turned by a quarter to the right
    hopper.transpose(Image.Transpose.ROTATE_90).save(photos / "grace/deep/2.JPG", exif=lying, quality=95)
    both = Image.new("RGB", (hopper.width * 2, hopper.height))
    both.paste(hopper, (0, 0))
    both.paste(hopper.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (hopper.width, 0))
    both.save(photos / "pair" / "3.png")
    shutil.copy(FLOWER, photos / "nobody" / "4.jpg")
    (photos / "nobody" / "5.jpg").write_bytes(b"no picture")
    command = [str(photos), "--out", str(out), "--workers", "1"]
    assert align_faces.main(command) == 0
    said = capsys.readouterr().out
    assert "5 photographs: a face in 3 (1 with several), none in 1, 1 cannot be read; 3 crops" in said
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent != out)
    assert written == ["grace/1.jpg", "grace/deep/2.JPG", "pair/3.png.jpg"]
    rows = csv.DictReader((out / "aligned.csv").read_text().splitlines())
    lines = {line["path"]: line for line in rows}
    assert {name: line["found"] for name, line in lines.items()} == {
        "grace/1.jpg": "yes",
        "grace/deep/2.JPG": "yes",
        "pair/3.png": "yes",
        "nobody/4.jpg": "no",
        "nobody/5.jpg": "bad",
    }
    assert (lines["pair/3.png"]["faces"], lines["pair/3.png"]["note"]) == ("2", "several faces")
    assert lines["nobody/5.jpg"]["note"] == "no image of a known kind"
    upright, was_lying = (Image.open(out / "grace" / name) for name in ("1.jpg", "deep/2.JPG"))
    assert upright.size == (112, 112)
    assert agreement(upright, was_lying) > 0.99
    # Again: one photograph is new, the others are not looked at.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    shutil.copy(HOPPER, photos / "grace" / "6.jpg")
    assert align_faces.main(command) == 0
    assert "5 of 6 photographs are in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_index(out)) == 4
    # Crops of other options do not mix with these.
    assert align_faces.main([*command, "--several", "leave"]) == 2
    assert "made with --several take" in capsys.readouterr().err
    other = [
        *command[:2],
        str(tmp_path / "other"),
        *command[3:],
        "--several",
        "leave",
        "--keep-missed",
        "0.5",
    ]
    assert align_faces.main(other) == 0
    assert not (tmp_path / "other" / "pair").exists()
    kept = Image.open(tmp_path / "other" / "nobody" / "4.jpg")
    flower = decode(FLOWER.read_bytes())
    left, top = (flower.width - flower.height / 2) / 2, flower.height / 4
    middle = flower.crop((left, top, left + flower.height / 2, 3 * top))
    assert agreement(kept, middle.resize((112, 112))) > 0.99


def test_processes_make_the_same_crops(detector: align_crops.Detector, tmp_path: Path) -> None:
    (tmp_path / "photos" / "grace").mkdir(parents=True)
    for i in range(9):
        shutil.copy(HOPPER, tmp_path / "photos" / "grace" / f"{i:02}.jpg")
    assert align_faces.main([str(tmp_path / "photos"), "--out", str(tmp_path / "out"), "--workers", "2"]) == 0
    crops = sorted((tmp_path / "out" / "grace").iterdir())
    alone = align_crops.align(detector, decode(HOPPER.read_bytes()), OPTIONS)[1]
    assert len(crops) == 9
    assert len({path.read_bytes() for path in crops}) == 1
    assert alone is not None
    assert agreement(Image.open(crops[0]), alone) > 0.999


def test_without_the_detector_it_is_said(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "facenet_pytorch", None)
    (tmp_path / "in" / "a").mkdir(parents=True)
    shutil.copy(HOPPER, tmp_path / "in" / "a" / "1.jpg")
    assert align_faces.main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "2"]) == 2
    assert "pip install 'facemetric[align]'" in capsys.readouterr().err


def test_real_faces_come_back_to_where_they_were(detector: align_crops.Detector, real_data: Path) -> None:
    """Aligned faces laid turned, scaled and shifted on a grey canvas: the template's points return to within
    a pixel and a half of 112 in the mean, which is what the detector and the crops' own alignment differ by."""
    index = read_index(real_data / "lfw112.tar")
    rng = np.random.default_rng(0)
    errors, agreements = [], []
    for row in rng.choice(len(index), 24, replace=False).tolist():
        face = decode(index.read(row))
        there = turned(rng.uniform(-30, 30), rng.uniform(0.7, 2.5), (56, 56), tuple(rng.uniform(150, 250, 2)))
        canvas = Image.new("RGB", (400, 400), (127, 127, 127))
        inner = Image.new("L", face.size, 255)
        data = tuple(inverse(there).ravel().tolist())
        laid = [
            p.transform((400, 400), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
            for p in (face, inner)
        ]
        canvas.paste(laid[0], mask=laid[1])
        line, crop = align_crops.align(detector, canvas, OPTIONS)
        assert line.found == "yes"
        assert crop is not None
        back = similarity(np.reshape(line.landmarks or [], (5, 2)), TEMPLATE)
        errors.append(np.linalg.norm(apply(back, apply(there, TEMPLATE)) - TEMPLATE, axis=1).mean())
        agreements.append(agreement(crop.crop((16, 16, 96, 96)), face.crop((16, 16, 96, 96))))
    assert np.mean(errors) < 1.5
    assert np.mean(agreements) > 0.93
