"""Anybody's detector, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facemetric.errors import ConfigError
from facemetric.faces.crops import find_faces
from facemetric.faces.detector import Detection, default_detector, load_detector
from facemetric.faces.template import TEMPLATE

OWN = '''
import numpy as np
POINTS = [[60, 70], [95, 70], [77, 90], [63, 110], [92, 110]]
def corner(images):
    """A face at the same place of every picture, as plain lists."""
    return [[([40, 40, 120, 130], POINTS, 0.95)] for _ in images]
def few(images):
    return []
def short(images):
    return [[([1, 2, 3], POINTS, 1.0)] for _ in images]
def lost(images):
    return [[([0, 0, 1, 1], np.full((5, 2), np.nan), 1.0)] for _ in images]
NUMBER = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_detector.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 260, 3), dtype=np.uint8))


@pytest.mark.usefixtures("own")
def test_an_own_detector_decides_where_the_face_is() -> None:
    detector = load_detector("own_detector:corner")
    face = find_faces([picture()], detector)[0].faces[0]
    np.testing.assert_array_equal(face.landmarks, [[60, 70], [95, 70], [77, 90], [63, 110], [92, 110]])
    assert face.crop.size == (112, 112)
    assert (face.score, face.turn) == (0.95, 0)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corner", "name it as package.module:function"),
        ("no_such_module:f", "does not import"),
        ("own_detector:corners", "own_detector has no 'corners'"),
        ("own_detector:NUMBER", "is no function"),
    ],
)
def test_a_name_that_is_no_detector_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_detector(name)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("few", "gave 0 lists of faces for 1 pictures"),
        ("short", "a face is .box of 4 numbers"),
        ("lost", "a face is .box of 4 numbers"),
    ],
)
def test_what_a_detector_gives_is_checked(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_faces([picture()], load_detector(f"own_detector:{name}"))


def test_the_default_detector_is_made_once() -> None:
    assert load_detector("") is default_detector()
    assert Detection(np.array([1.0, 1, 4, 3]), TEMPLATE, 1.0).area == 6
