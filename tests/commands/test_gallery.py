"""`facemetric gallery` and `facemetric identify` as they are typed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import in_processes
from photographs import HOPPER, pair
from PIL import Image

from facemetric import cli, identify
from facemetric.errors import ConfigError, DataError
from facemetric.gallery.folder import SKIPPED, GalleryFolder, GalleryList
from facemetric.gallery.gallery import Gallery
from facemetric.gallery.parts import Rows

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Status, stdout and stderr of a command."""

    def run(*tokens: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(token) for token in tokens])
        return (int(caught.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def g(command: Command, faces: Path, untrained: Path, tmp_path: Path) -> Path:
    """The 96 drawn faces of 16 people."""
    status, out, _ = command(
        "gallery", "add", tmp_path / "g", faces, "--weights", untrained, "--device", "cpu"
    )
    assert status == 0
    assert f"96 faces of 16 people enrolled in {tmp_path / 'g'}, from 96 photographs" in out
    return tmp_path / "g"


def fault(ran: tuple[int, str, str]) -> str:
    status, _, err = ran
    assert status == 2
    assert err.startswith("facemetric: ")
    assert err.count("\n") == 1
    return err


def test_add_list_remove(command: Command, g: Path, faces: Path) -> None:
    names = sorted(folder.name for folder in faces.iterdir())
    status, out, _ = command("gallery", "list", g)
    lines = out.splitlines()
    assert (status, lines[0]) == (0, " faces  quality    person")
    assert lines[1:-1] == [f"     6  -          {name}" for name in names]  # no face was looked for
    assert lines[-1].startswith(f"16 people, 96 faces in {g}; weights ")
    assert json.loads(command("gallery", "list", g, "--json")[1])["people"] == dict.fromkeys(names, 6)
    photos = sorted(map(str, (faces / names[0]).iterdir()))
    assert (
        command("gallery", "list", g, names[0])[1]
        == "\n      -  ".join([f"quality  photograph\n{names[0]}", *photos]) + "\n"
    )
    assert "did you mean 'drawn_0001'" in fault(command("gallery", "list", g, "drown_0001"))
    assert "96 photographs enrolled before" in command("gallery", "add", g, faces)[1]
    assert "did you mean 'drawn_0001'" in fault(command("gallery", "remove", g, "drown_0001"))
    status, out, _ = command("gallery", "remove", g, names[0], "--photos", photos[0], photos[1])
    assert (status, out) == (0, f"2 faces removed from {g}; 16 people, 94 faces left\n")
    assert command("gallery", "remove", g, *names[:2])[1].startswith("10 faces removed")
    assert f"'{photos[0]}'" in fault(command("gallery", "remove", g, "--photos", photos[0]))


def test_list_shows_the_quality_of_faces(command: Command, tmp_path: Path) -> None:
    folder = GalleryFolder.create(tmp_path / "g", GalleryList("0" * 64, "weights", 2))
    quality = np.array([0.5, np.nan, 0.25, 0.75, np.nan], np.float32)
    names, photos = ["ada", "ada", "ada", "grace", "mary"], ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "5.jpg"]
    hashes = np.arange(5 * 32, dtype=np.uint8).reshape(5, 32)
    rows = Rows(np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 0]], names, photos, hashes, quality, [b""] * 5)
    folder.append(rows.take(np.arange(2)))
    folder.append(rows.take(np.arange(2, 5)))
    lines = command("gallery", "list", tmp_path / "g")[1].splitlines()
    assert lines[1:4] == ["     3  0.25-0.50  ada", "     1  0.75       grace", "     1  -          mary"]
    record = json.loads(command("gallery", "list", tmp_path / "g", "--json")[1])
    assert record["quality"] == {"ada": [0.25, 0.5], "grace": [0.75, 0.75], "mary": [None, None]}
    lines = command("gallery", "list", tmp_path / "g", "ada")[1].splitlines()
    assert lines[1:] == ["ada", "   0.50  1.jpg", "      -  2.jpg", "   0.25  3.jpg"]
    record = json.loads(command("gallery", "list", tmp_path / "g", "ada", "--json")[1])
    assert record == {"people": {"ada": photos[:3]}, "quality": {"ada": [0.5, None, 0.25]}}


def test_identify_says_who_and_what_the_threshold_means(
    command: Command, g: Path, faces: Path, tmp_path: Path
) -> None:
    photo = sorted(faces.rglob("*.jpg"))[0]
    for show in ("page.html", "sheet.png"):
        status, out, _ = command(
            "identify", photo, "--gallery", g, "--threshold", 0.9999, "--show", tmp_path / show, "--top", 1
        )
        assert status == 0
        lines = out.splitlines()
        assert lines[0] == f"{photo} (32 x 32 pixels at 0,0): drawn_0001, score 1.0000"
        assert lines[1].startswith(
            "threshold 0.9999, as given, for 16 people, 96 faces; of the enrolled, tried"
        )
        assert lines[2] == f"pictures in {tmp_path / show}"
    page = (tmp_path / "page.html").read_text()
    assert page.count('<img src="data:image/jpeg;base64,') == 2
    assert "drawn_0001, score 1.0000" in page
    assert Image.open(tmp_path / "sheet.png").size[1] == 112 + 16
    status, out, _ = command("identify", faces / "drawn_0001", photo, "--gallery", g, "--fpir", 0.2, "--json")
    record = json.loads(out)
    assert len(record["photos"]) == 7
    assert record["threshold"]["wanted_fpir"] == 0.2
    assert record["threshold"]["people"] == 16
    assert record["photos"][6]["faces"][0]["matches"][0]["name"] == "drawn_0001"
    assert record["photos"][0]["faces"][0]["matches"] == record["photos"][6]["faces"][0]["matches"]
    status, out, _ = command("identify", faces / "drawn_0001", "--gallery", g, "--fpir", 0.2)
    assert "chosen so that a share of 0.2 of the people who are not enrolled" in out
    assert "6 faces in 6 photographs" in out


def test_identify_from_python_is_the_same_and_quiet(
    g: Path, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = sorted(faces.rglob("*.jpg"))[0]
    capsys.readouterr()
    found = identify(photo, gallery=str(g), threshold=0.9999, device="cpu")
    assert capsys.readouterr().out == ""
    assert found.names == ["drawn_0001"]
    with pytest.raises(ConfigError, match="no gallery: `facemetric identify"):
        identify(photo)
    with pytest.raises(DataError, match="no such file or folder; give photographs"):
        identify("nowhere.jpg", gallery=str(g))


def test_check_finds_a_damaged_gallery(command: Command, g: Path) -> None:
    status, out, _ = command("gallery", "check", g, "--fpir", 0.1)
    assert status == 0
    assert out.startswith(f"{g}: 16 people, 96 faces; every file is as it was written\n")
    assert json.loads(command("gallery", "check", g, "--json")[1])["faces"] == 96
    (crops,) = (g / "parts").glob("*.crops")
    os.truncate(crops, 100)
    assert "crops is not the file that the gallery's list describes" in fault(command("gallery", "check", g))
    (rows,) = (g / "parts").glob("*.safetensors")
    os.truncate(rows, 100)
    for words in (
        ["gallery", "list", g],
        ["identify", HOPPER, "--gallery", g],
        ["gallery", "add", g, HOPPER],
    ):
        extra = ["--name", "x"] if "add" in words else []
        assert "safetensors is not the file" in fault(command(*words, *extra))


def test_one_person_and_photographs_named_as_their_person(
    command: Command, untrained: Path, faces: Path, tmp_path: Path
) -> None:
    photos = sorted(faces.rglob("*.jpg"))
    loose = tmp_path / "loose"
    loose.mkdir()
    for name, photo in zip(("Ada.jpg", "Ada 2.jpg", "Ada (3).jpg", "Žofie_04.png"), photos, strict=False):
        shutil.copy(photo, loose / name)
    g = tmp_path / "g"
    text = fault(command("gallery", "add", g, loose, "--weights", untrained))
    assert "--name NAME" in text
    assert "--file-names" in text
    assert not (g / "parts").exists()
    assert "whose is" in fault(command("gallery", "add", g, loose / "Ada.jpg", "--weights", untrained))
    assert command("gallery", "add", g, loose, "--file-names", "--weights", untrained)[0] == 0
    assert json.loads(command("gallery", "list", g, "--json")[1])["people"] == {"Ada": 3, "Žofie": 1}
    assert command("gallery", "add", g, "--name", "Grace", photos[8], photos[9].parent)[0] == 0
    assert json.loads(command("gallery", "list", g, "--json")[1])["people"]["Grace"] == 6


def test_slips(command: Command, g: Path, faces: Path, untrained: Path, tmp_path: Path) -> None:
    photo = sorted(faces.rglob("*.jpg"))[0]
    new = tmp_path / "new"
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"a photograph")
    for words, message in (
        (["gallery", "add"], "no gallery was named"),
        (["gallery", "add", new], "nobody to enroll"),
        (["gallery", "add", new, faces], "is a new gallery: name the weights that it is for"),
        (["gallery", "add", new, faces, "--weights", "faces-11"], "did you mean 'faces-112'"),
        (["gallery", "add", new, tmp_path / "nowhere", "--weights", untrained], "nowhere: no such file"),
        (["gallery", "add", g, photo, "--name", "a", "--file-names"], "are two ways; give one"),
        (["gallery", "add", g, faces, "--flip"], "--flip is chosen for a new gallery"),
        (["gallery", "add", g, faces, "--no-crops"], "--crops is chosen for a new gallery"),
        (["gallery", "add", g, faces, "--weights", "faces-96"], "was enrolled with other weights"),
        (["gallery", "add", faces, faces, "--weights", untrained], "holds other files"),
        (["gallery", "remove", g], "nobody to remove"),
        (["gallery", "list"], "no gallery was named"),
        (["gallery", "list", tmp_path / "nowhere"], "nowhere is no gallery"),
        (["gallery", "check", tmp_path / "nowhere"], "nowhere is no gallery"),
        (["identify", "--gallery", g], "no photographs: `facemetric identify PHOTO"),
        (["identify", photo], "no gallery: `facemetric identify PHOTO"),
        (["identify", tmp_path / "no.jpg", "--gallery", g], "no.jpg: no such file or folder"),
        (["identify", photo, "--gallery", g, "--show", "x.gif"], "drawn as .html or .png"),
        (
            ["identify", photo, "--gallery", g, "--show", kept],
            "kept.png is there already, and nothing is overwr",
        ),
        (["identify", photo, "--gallery", g, "--fpir", 2], "--fpir is 2.0; it is a share"),
        (["identify", photo, "--gallery", g, "--fpir", 1], "a share above 0 and below 1"),
        (["identify", photo, "--gallery", g, "--detector", "x:y"], "--detector is given, but"),
    ):
        assert message in fault(command(*words)), words
    assert kept.read_bytes() == b"a photograph"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_while_enrolling(
    command: Command, g: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = command("gallery", "list", g)[1]

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    photo = sorted(faces.rglob("*.jpg"))[0]
    text = fault(command("gallery", "add", g, photo, "--name", "new"))
    assert "No space left on device" in text
    assert "free some of the disk" in text
    monkeypatch.undo()
    assert command("gallery", "list", g)[1] == before
    assert command("gallery", "check", g)[0] == 0


def test_photographs_without_a_clear_face(command: Command, tmp_path: Path) -> None:
    people = tmp_path / "people" / "Grace Hopper"
    people.mkdir(parents=True)
    shutil.copy(HOPPER, people)
    pair().save(people / "two.png")
    Image.new("RGB", (200, 200), "blue").save(people / "sky.png")
    (people / "cut.jpg").write_bytes(HOPPER.read_bytes()[:3000])
    g = tmp_path / "g"
    options = ["--weights", "faces-96", "--device", "cpu"]
    status, out, _ = command("gallery", "add", g, tmp_path / "people", *options)
    assert status == 0
    assert "1 face of 1 person enrolled" in out
    assert "3 photographs skipped:" in out
    skipped = (g / SKIPPED).read_text().splitlines()
    assert [line.split(",")[0].rsplit("/")[-1] for line in skipped] == [
        "photo",
        "cut.jpg",
        "sky.png",
        "two.png",
    ]
    status, out, _ = command(
        "gallery", "add", g, people / "two.png", "--name", "Grace Hopper", "--take-largest"
    )
    assert status == 0
    assert not (g / SKIPPED).exists()
    text = fault(command("gallery", "add", g, people / "sky.png", "--name", "x"))
    assert "nobody was enrolled" in text
    assert "sky.png: no face found" in text
    text = fault(command("identify", people / "sky.png", "--gallery", g))
    assert "no face to identify" in text
    status, out, _ = command("identify", people / "two.png", people / "sky.png", "--gallery", g)
    assert status == 0
    assert out.count("Grace Hopper, score") == 2
    assert "sky.png: no face found" in out


def test_lists_need_no_torch(g: Path) -> None:
    import subprocess

    code = (
        "import sys\nfrom facemetric.cli import main\n"
        f"try: main(['gallery', 'list', {str(g)!r}])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'timm', 'PIL', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_share_the_photographs(world: int, g: Path, faces: Path, tmp_path: Path) -> None:
    """Every process has the answers of all, in their order; the first one draws."""
    photos = [str(path) for path in sorted(faces.rglob("*.*"))[:7]]
    options = {"gallery": str(g), "threshold": 0.999, "device": "cpu"}

    def answers(show: Path | None = None) -> list[tuple[str, list[str], list[str]]]:
        found = identify(photos, **options, show=show).photos
        return [
            (each.photo, each.names, [match.name for face in each.faces for match in face.matches])
            for each in found
        ]

    def process(rank: int) -> None:
        seen: list[str] = []
        real = Gallery.answer

        def counted(self: Gallery, photos: Any, **options: Any) -> Any:
            for answer in real(self, photos, **options):
                seen.append(answer.photo)
                yield answer

        Gallery.answer = counted  # type: ignore[method-assign]
        found = answers(tmp_path / f"shown {rank}.html")
        (tmp_path / f"{rank}.json").write_text(json.dumps([found, seen]))

    ended = in_processes(world, process, tmp_path / "said")
    assert ended == [0] * world, (tmp_path / "said").read_text()
    expected = json.loads(json.dumps(answers()))
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    assert [found for found, _ in parts] == [expected] * world
    assert [len(seen) for _, seen in parts] == ([4, 3] if world == 2 else [3, 2, 2])
    assert (tmp_path / "shown 0.html").exists()
    assert not (tmp_path / "shown 1.html").exists()


def test_processes_with_other_galleries_are_refused(g: Path, faces: Path, tmp_path: Path) -> None:
    """Each under one path of its own machine."""
    photo = str(next(faces.rglob("*.*")))
    for rank in (0, 1):
        shutil.copytree(g, tmp_path / str(rank) / "g")
    other = Gallery(tmp_path / "1" / "g", device="cpu")
    other.remove(sorted(other.people)[0])

    def process(rank: int) -> None:
        os.chdir(tmp_path / str(rank))
        with pytest.raises(ConfigError, match="process 1 has another value of the gallery than process 0"):
            identify(photo, gallery="g", device="cpu")

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()
