"""The one call by which commands find faces: in order, in bounded memory, with a quality below which none counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photographs import HOPPER, hopper, pair
from PIL import Image

from facemetric.errors import ConfigError
from facemetric.faces import finder as finding
from facemetric.faces.crops import Face, NoFace, find_faces
from facemetric.faces.finder import FaceFinder, face_finder

NO_FACE = np.full((300, 200, 3), 127, np.uint8)


def test_each_picture_gets_its_faces_or_its_reason_in_order(tmp_path: Path) -> None:
    pictures = [HOPPER, NO_FACE, tmp_path / "absent.jpg", pair(), b"words"]
    found = list(FaceFinder()(pictures))
    assert [len(one.faces) for one in found] == [1, 0, 0, 2, 0]
    assert [one.missing for one in found] == [
        None,
        NoFace("no face found"),
        NoFace("No such file or directory", unreadable=True),
        None,
        NoFace("no image of a known kind", unreadable=True),
    ]
    expected = find_faces([hopper()])[0].faces[0]
    np.testing.assert_array_equal(np.asarray(found[0].take().crop), np.asarray(expected.crop))
    face = FaceFinder().one(pair())
    assert isinstance(face, Face)
    assert face.area == max(one.area for one in found[3].faces)


@pytest.mark.parametrize("limit", ["TOGETHER", "PIXELS_TOGETHER"])
def test_few_pictures_are_held_at_once(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, limit, 2 if limit == "TOGETHER" else 100_000)
    read = []

    def pictures() -> Iterator[np.ndarray]:
        for number in range(5):
            read.append(number)
            yield np.full((250, 250, 3), number, np.uint8)  # two are above 100,000 pixels

    found = FaceFinder()(pictures())
    next(found)
    assert read == [0, 1]
    assert len(list(found)) == 4


def test_faces_of_too_low_a_quality_do_not_count() -> None:
    blurred = hopper().resize((32, 38)).resize((512, 600), Image.Resampling.BICUBIC)
    both = [face.quality.figure for face in (FaceFinder().one(hopper()), FaceFinder().one(blurred))]  # type: ignore[union-attr]
    assert both[0] > both[1] + 0.1
    strict = FaceFinder(min_quality=sum(both) / 2)
    sharp, missing = strict.one(hopper()), strict.one(blurred)
    assert isinstance(sharp, Face)
    assert isinstance(missing, NoFace)
    assert missing.reason.startswith(f"the face is of quality {both[1]:.2f}, below the ")
    assert "--min-quality" in missing.reason


def test_auto_looks_for_faces_where_the_weights_expect_them() -> None:
    auto = face_finder("auto", pictures="faces")
    assert auto is not None
    assert auto.options.given == "auto"
    assert face_finder("auto", pictures="") is face_finder("off", pictures="faces") is None
    asked = face_finder("photographs", pictures="", size=160)
    assert asked is not None
    assert (asked.options.given, asked.options.size) == ("photographs", 160)
    with pytest.raises(
        ConfigError, match=r"--min-quality is given, but these weights are not known to be of"
    ):
        face_finder("auto", pictures="", min_quality=0.5)
    with pytest.raises(ConfigError, match=r"--detector is given, but --faces is off"):
        face_finder("off", pictures="faces", detector="mine:detect")
    with pytest.raises(ConfigError, match="does not import"):
        face_finder("auto", pictures="faces", detector="no_such_module:detect")
