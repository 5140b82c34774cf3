"""Quality: what makes a crop worse lowers its figure."""

from __future__ import annotations

import numpy as np
import pytest
from photographs import hopper
from PIL import Image

from facemetric.faces.crops import Face, face_or_reason
from facemetric.faces.quality import quality_of, sharpness, turn_of
from facemetric.faces.template import TEMPLATE


@pytest.fixture(scope="module")
def face() -> Face:
    found = face_or_reason(hopper())
    assert isinstance(found, Face)
    return found


def test_a_blurred_crop_is_less_sharp() -> None:
    picture = hopper().resize((112, 112))
    blurred = picture.resize((28, 28)).resize((112, 112))
    assert sharpness(blurred) < 0.2 * sharpness(picture)
    assert sharpness(Image.new("RGB", (9, 9), "red")) == 0


def test_blur_distance_and_doubt_lower_the_figure(face: Face) -> None:
    best = quality_of(face.crop, face.landmarks, 1.0)
    assert best.figure > 0.9
    blurred = quality_of(face.crop.resize((14, 14)).resize((112, 112)), face.landmarks, 1.0)
    far = quality_of(face.crop, face.landmarks / 8, 1.0)
    doubtful = quality_of(face.crop, face.landmarks, 0.3)
    assert max(blurred.figure, far.figure, doubtful.figure) < 0.9 * best.figure
    assert far.eye_distance == pytest.approx(best.eye_distance / 8)
    assert quality_of(Image.new("RGB", (112, 112)), face.landmarks, 1.0).figure == 0


def test_the_figure_is_the_geometric_mean_of_its_shares(face: Face) -> None:
    found = quality_of(face.crop, face.landmarks / 4, 0.6)
    sharp, size = 1.0, found.eye_distance / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])
    assert found.sharpness > 300
    assert found.figure == pytest.approx((0.6 * sharp * size * (1 - found.turn)) ** 0.25)


def test_a_turned_head_has_its_nose_to_one_side() -> None:
    assert turn_of(TEMPLATE) < 0.02
    for side in (-1, 1):
        turned = TEMPLATE.copy()
        turned[2, 0] += side * 9
        assert 0.45 < turn_of(turned) < 0.65
        rolled = turned @ np.array([[0.6, -0.8], [0.8, 0.6]])
        assert turn_of(rolled * 3) == pytest.approx(turn_of(turned), abs=0.02)
    profile = TEMPLATE.copy()
    profile[2, 0] += 60
    assert turn_of(profile) == 1
