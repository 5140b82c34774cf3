"""Photographs to aligned faces: the csv, the names of crops, refusals, a folder with everything in it, processes."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import FLOWER, HOPPER, hopper, pair
from PIL import Image

import facemetric as fm
import facemetric.cli
from facemetric.commands.align import align
from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.errors import ConfigError
from facemetric.faces.align_record import Line, Record


def run(*arguments: str | Path) -> int:
    """The exit status of the command."""
    try:
        facemetric.cli.main(["align", *map(str, arguments)])
    except SystemExit as status:
        return int(status.code or 0)
    return 0


def agreement(one: Image.Image, other: Image.Image) -> float:
    """Correlation of the pixels, -1..1."""
    return float(np.corrcoef(np.asarray(one, float).ravel(), np.asarray(other, float).ravel())[0, 1])


def lines_in(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "aligned.csv").read_text().splitlines()))


# The csv


def test_a_torn_line_is_taken_out_and_the_photograph_done_again(tmp_path: Path) -> None:
    record = Record(tmp_path, {"size": 112})
    line = Line(
        "yes",
        "anna/1.jpg",
        "anna/1.jpg",
        0.99,
        2,
        [1, 2, 3, 4],
        [5.0] * 10,
        30,
        80,
        0.9,
        0,
        1.0,
        "several, so",
    )
    record.add([line, Line("no", 'b,"o"/2.jpg', note="no face found")])
    whole = record.path.read_bytes()
    record.path.write_bytes(whole + b"anna/3.jpg,yes,anna/3")
    again = Record(tmp_path, {"size": 112})
    assert again.done == {"anna/1.jpg", 'b,"o"/2.jpg'}
    assert record.path.read_bytes() == whole
    assert again.counts == {"yes": 1, "no": 1, "several": 1, "crops": 1}


def test_a_folder_holds_crops_of_one_set_of_options(tmp_path: Path) -> None:
    Record(tmp_path, {"size": 112, "min_score": 0.9}).add([Line("no", "a/1.jpg")])
    with pytest.raises(ConfigError, match=r"made with --min-score 0\.9; give these again"):
        Record(tmp_path, {"size": 112, "min_score": 0.8})
    assert Record(tmp_path, {"size": 112, "min_score": 0.9}).done == {"a/1.jpg"}


def test_a_csv_of_an_older_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aligned.csv").write_text("path,found\na/1.jpg,yes\n")
    with pytest.raises(ConfigError, match="has other columns than this version writes"):
        Record(tmp_path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--min-score", "2"], "--min-score is 2.0; it is a share, choose 0..1"),
        (["--size", "4"], "--size is 4; choose 16..4096"),
        (["--workers", "-2"], "--workers is -2; it must be at least -1"),
        (["--detector", "nothing"], "--detector is 'nothing'; name it as package.module:function"),
    ],
)
def test_options_out_of_range_are_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert run(tmp_path, "--out", tmp_path / "out", *options) == 2
    assert capsys.readouterr().err == f"facemetric: {message}\n"
    assert not (tmp_path / "out").exists()


def test_names_that_would_meet_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("1.png", "1.png.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / "a" / name)
    assert run(tmp_path / "in", "--out", tmp_path / "out") == 2
    assert "a/1.png and a/1.png.jpg would share the crop's name 'a/1.png.jpg'" in capsys.readouterr().err


def test_the_name_of_a_second_face_is_kept_free(tmp_path: Path, capsys: Any) -> None:
    photograph(tmp_path / "in/a/1.face2.jpg")
    assert run(tmp_path / "in", "--out", tmp_path / "out", "--several", "every") == 2
    assert "a/1.face2.jpg has the name of a second face's crop" in capsys.readouterr().err


def photograph(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), (9, 99, 199)).save(path)
    return path


def crops_of(data: Path, out: Path) -> int:
    """The command on photographs without a face: --keep-missed makes a crop of each."""
    return run(data, "--out", out, "--keep-missed", "1", "--workers", "1")


def test_a_csv_that_lists_photographs_anywhere(tmp_path: Path) -> None:
    """Each crop goes to its identity's folder, and the photographs stay as they were."""
    photos = [
        photograph(tmp_path / name) for name in ("p/DCIM/1.jpg", "p/DCIM/2.jpg", "q/3.jpg", "anna/deep/1.jpg")
    ]
    before = [path.read_bytes() for path in photos]
    (tmp_path / "lists").mkdir()
    lines = [f"{photos[0]},anna", "../p/DCIM/2.jpg,bob", "../q/3.jpg,anna"]
    (tmp_path / "lists/l.csv").write_text("\n".join(["path,identity", *lines]) + "\n")
    assert crops_of(tmp_path / "lists/l.csv", tmp_path / "out") == 0
    index = read_index(tmp_path / "out")
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "anna/3.jpg", "bob/2.jpg"]
    (tmp_path / "m.csv").write_text("path,identity\nanna/deep/1.jpg,anna\np/DCIM/1.jpg,anna\n")
    assert crops_of(tmp_path / "m.csv", tmp_path / "out2") == 0
    index = read_index(tmp_path / "out2")
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "anna/deep/1.jpg"]
    assert [path.read_bytes() for path in photos] == before


@pytest.mark.parametrize(
    ("listed", "out", "message"),
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
def test_no_crop_goes_astray(listed: str, out: str, message: str, tmp_path: Path, capsys: Any) -> None:
    photos = [photograph(tmp_path / "photos" / who / "1.jpg") for who in ("anna", "bob")]
    before = [path.read_bytes() for path in photos]
    data = tmp_path / listed
    if "," in listed:
        data = tmp_path / "list.csv"
        data.write_text(f"path,identity\n{listed}\n")
    assert crops_of(data, tmp_path / out) == 2
    assert message in capsys.readouterr().err
    assert [path.read_bytes() for path in photos] == before
    assert not (tmp_path / out / "aligned.csv").exists()


def test_a_crop_through_a_link_is_refused(tmp_path: Path, capsys: Any) -> None:
    photo = photograph(tmp_path / "photos/anna/2.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/anna").symlink_to(photo.parent)
    assert crops_of(tmp_path / "photos", tmp_path / "out") == 2
    assert "would lie in" in capsys.readouterr().err


# Faces


def test_a_folder_of_photographs(tmp_path: Path, capsys: Any) -> None:
    """Structure, EXIF, two faces, no face, a broken file; then the same command again, and with other options."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("grace", "pair", "nobody"):
        (photos / name / "deep").mkdir(parents=True)
    shutil.copy(HOPPER, photos / "grace" / "1.jpg")
    lying = Image.Exif()
    lying[0x0112] = 6  # to be turned by a quarter to the right
    hopper().transpose(Image.Transpose.ROTATE_90).save(photos / "grace/deep/2.JPG", exif=lying, quality=95)
    pair().save(photos / "pair" / "3.png")
    shutil.copy(FLOWER, photos / "nobody" / "4.jpg")
    (photos / "nobody" / "5.jpg").write_bytes(b"no picture")
    command = [photos, "--out", out, "--workers", "1"]
    assert run(*command) == 0
    message = capsys.readouterr().out
    assert "5 photographs: a face in 3 (1 with several), none in 1, 1 cannot be read; 3 crops" in message
    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.parent != out)
    assert written == ["grace/1.jpg", "grace/deep/2.JPG", "pair/3.png.jpg"]
    lines = {line["path"]: line for line in lines_in(out)}
    assert {name: line["found"] for name, line in lines.items()} == {
        "grace/1.jpg": "yes",
        "grace/deep/2.JPG": "yes",
        "pair/3.png": "yes",
        "nobody/4.jpg": "no",
        "nobody/5.jpg": "bad",
    }
    assert (lines["pair/3.png"]["faces"], lines["pair/3.png"]["note"]) == ("2", "several faces")
    assert lines["nobody/4.jpg"]["note"] == "no face found"
    assert lines["nobody/5.jpg"]["note"] == "no image of a known kind"
    assert float(lines["grace/1.jpg"]["quality"]) > 0.9
    upright, was_lying = (Image.open(out / "grace" / name) for name in ("1.jpg", "deep/2.JPG"))
    assert upright.size == (112, 112)
    assert agreement(upright, was_lying) > 0.99
    # Again: one photograph is new, the others are not looked at.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    shutil.copy(HOPPER, photos / "grace" / "6.jpg")
    assert run(*command) == 0
    assert "5 of 6 photographs are in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(read_index(out)) == 4
    # Crops of other options do not mix with these.
    assert run(*command, "--several", "leave") == 2
    assert "made with --several take" in capsys.readouterr().err
    other = tmp_path / "other"
    assert run(photos, "--out", other, "--workers", "1", "--several", "leave", "--keep-missed", "0.5") == 0
    assert not (other / "pair").exists()
    kept, flower = Image.open(other / "nobody" / "4.jpg"), decode(FLOWER.read_bytes())
    left, top = (flower.width - flower.height / 2) / 2, flower.height / 4
    middle = flower.crop((left, top, left + flower.height / 2, 3 * top))
    assert agreement(kept, middle.resize((112, 112))) > 0.99


def test_loose_photographs_and_every_face_of_them(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    pair().save(tmp_path / "photos" / "two.png")
    hopper().rotate(90, expand=True).save(tmp_path / "photos" / "side.jpg", quality=95)
    found = align(tmp_path / "photos", out=tmp_path / "out", several="every", workers=1)
    assert (found.with_face, found.with_several, found.crops) == (2, 1, 3)
    names = sorted(path.name for path in (tmp_path / "out").glob("*.jpg"))
    assert names == ["side.jpg", "two.png.face2.jpg", "two.png.jpg"]
    turns = {line["crop"]: line["turn"] for line in lines_in(tmp_path / "out")}
    assert turns == {"side.jpg": "3", "two.png.jpg": "0", "two.png.face2.jpg": "0"}
    again = align(tmp_path / "photos", out=tmp_path / "out", several="every", workers=1)
    assert again == found


def test_a_call_is_quiet_and_takes_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph(tmp_path / "photos" / "a" / "1.jpg")
    (tmp_path / "photos" / "a" / "note.txt").write_text("no photograph")
    config = fm.AlignConfig((str(tmp_path / "photos"),), out=tmp_path / "out", workers=0)
    before = fm.show_progress(False)
    found = fm.align(config)
    again = fm.align(tmp_path / "photos", out=tmp_path / "out", workers=0)
    fm.show_progress(before)
    assert capsys.readouterr() == ("", "")
    assert found == again
    assert found.text().startswith(
        "1 photograph: a face in 0 (0 with several), none in 1, 0 cannot be read; 0 "
    )
    with pytest.raises(ConfigError, match=r"quality is 0; choose 1\.\.100"):
        fm.align(tmp_path / "photos", quality=0)


def test_crops_among_photographs_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "photos" / "g").mkdir(parents=True)
    shutil.copy(HOPPER, tmp_path / "photos" / "g" / "1.jpg")
    align(tmp_path / "photos", out=tmp_path / "first", workers=1)
    align(tmp_path / "first", out=tmp_path / "second", workers=1, crops=True)
    (line,) = lines_in(tmp_path / "second")
    assert line["note"] == "an aligned crop already"
    one, two = (Image.open(tmp_path / name / "g" / "1.jpg") for name in ("first", "second"))
    assert agreement(one, two) > 0.999


def test_processes_make_the_same_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facemetric.faces.align.CHUNK", 2)
    (tmp_path / "photos" / "grace").mkdir(parents=True)
    for i in range(5):
        shutil.copy(HOPPER, tmp_path / "photos" / "grace" / f"{i:02}.jpg")
    for workers in (1, 2):
        align(tmp_path / "photos", out=tmp_path / str(workers), workers=workers)
    one, two = (sorted((tmp_path / workers / "grace").iterdir()) for workers in "12")
    assert [path.name for path in one] == [path.name for path in two] == [f"{i:02}.jpg" for i in range(5)]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert b"commons.wikimedia" in HOPPER.read_bytes()
    assert b"commons.wikimedia" not in one[0].read_bytes()


def test_an_own_detector_is_found_in_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = "[[60, 70], [95, 70], [77, 90], [63, 110], [92, 110]]"
    source = f"def detect(images):\n    return [[([40, 40, 120, 130], {points}, 0.95)] for _ in images]\n"
    (tmp_path / "my_own_faces.py").write_text(source)
    photograph(tmp_path / "photos" / "a" / "1.jpg")
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((200, 200), 90).convert("RGB").save("photos/a/1.jpg")
    assert run("photos", "--out", "out", "--workers", "1", "--detector", "my_own_faces:detect") == 0
    (line,) = lines_in(tmp_path / "out")
    assert (line["found"], line["score"], line["left_eye_x"], line["nose_y"]) == (
        "yes",
        "0.95",
        "60.0",
        "90.0",
    )


def test_one_photograph_is_named_by_its_file(tmp_path: Path) -> None:
    photo = tmp_path / "ada.png"
    hopper().save(photo)
    found = align(photo, out=tmp_path / "faces", workers=0)
    assert (found.with_face, found.crops) == (1, 1)
    assert (tmp_path / "faces" / "ada.png.jpg").is_file()
    assert photo.is_file()


def test_photographs_of_like_names_in_another_folder_are_others(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        hopper().save(tmp_path / folder / "1.png")
    out, options = tmp_path / "faces", {"workers": 0}
    align(tmp_path / "a" / "1.png", out=out, **options)
    crop = (out / "1.png.jpg").read_bytes()
    for other in (tmp_path / "b", tmp_path / "b" / "1.png"):
        with pytest.raises(ConfigError, match=r"holds crops of photographs in .*/a; name another out=$"):
            align(other, out=out, **options)
    assert (out / "1.png.jpg").read_bytes() == crop
    hopper().save(tmp_path / "a" / "2.png")
    assert align(tmp_path / "a", out=out, **options).crops == 2  # more of the folder goes on
