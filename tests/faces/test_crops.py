"""From photographs to faces or reasons: turned, tiny, several, none, no photograph at all, crops as they are."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from measure_faces import crops_of, error, photograph
from measure_faces import turned as scattered
from photographs import BY_EYE, FLOWER, HOPPER, hopper, pair, turned
from PIL import Image

from facemetric.data.images import BadImage, decode
from facemetric.data.index import read_index
from facemetric.faces import photographs as reading
from facemetric.faces.crop_look import crop_looks, is_whole
from facemetric.faces.crops import (
    DEFAULTS,
    Face,
    NoFace,
    choose,
    face_or_reason,
    find_faces,
    rivals,
)
from facemetric.faces.detector import Detection
from facemetric.faces.photographs import open_photograph
from facemetric.faces.quality import Quality
from facemetric.faces.template import TEMPLATE, apply_map, cut_out, invert, to_crop

AS_CROPS = DEFAULTS._replace(given="crops")
AS_PHOTOGRAPHS = DEFAULTS._replace(given="photographs")


@pytest.fixture(scope="module")
def face() -> Face:
    return found(hopper())


def found(image: object, **options: object) -> Face:
    face = face_or_reason(image, options=DEFAULTS._replace(**options))  # type: ignore[arg-type]
    assert isinstance(face, Face), face
    return face


def reason(image: object, **options: object) -> NoFace:
    missing = face_or_reason(image, options=DEFAULTS._replace(**options))  # type: ignore[arg-type]
    assert isinstance(missing, NoFace)
    return missing


def agreement(one: Image.Image, other: Image.Image) -> float:
    """Correlation of the pixels, -1..1."""
    return float(np.corrcoef(np.asarray(one, float).ravel(), np.asarray(other, float).ravel())[0, 1])


# Photographs


def test_the_face_is_brought_to_the_template(face: Face) -> None:
    assert np.linalg.norm(face.landmarks - BY_EYE, axis=1).max() < 8
    assert face.crop.size == (112, 112)
    assert (face.turn, face.was_crop, face.inside) == (0, False, 1)
    again = apply_map(to_crop(face.landmarks), face.landmarks)
    assert np.linalg.norm(again - TEMPLATE, axis=1).mean() < 4
    assert crop_looks([face.crop])[0].away < 4


@pytest.mark.parametrize(("degrees", "scale"), [(20, 0.7), (-35, 1.0), (0, 0.3), (0, 2.5)])
def test_a_turned_and_scaled_photograph_gives_the_same_crop(face: Face, degrees: float, scale: float) -> None:
    side = round(800 * scale)
    there = turned(degrees, scale, (256, 300), (side / 2, side / 2))
    other = found(cut_out(hopper(), there, side))
    back = to_crop(face.landmarks)
    moved = apply_map(back, apply_map(invert(there), other.landmarks)) - apply_map(back, face.landmarks)
    assert np.linalg.norm(moved, axis=1).mean() < 1  # pixels of 112
    assert agreement(other.crop, face.crop) > 0.94


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_photograph_on_its_side_or_head_is_turned(face: Face, quarters: int) -> None:
    other = found(hopper().rotate(90 * quarters, expand=True))
    assert other.turn == 4 - quarters
    np.testing.assert_array_equal(np.asarray(other.crop), np.asarray(face.crop))
    inside = (other.landmarks > other.box[:2]) & (other.landmarks < other.box[2:])
    assert inside.all()
    assert reason(hopper().rotate(90 * quarters, expand=True), turns=False).reason == "no face found"


def test_the_note_of_the_camera_is_followed(face: Face) -> None:
    lying = Image.Exif()
    lying[0x0112] = 6  # to be turned by a quarter to the right
    file = io.BytesIO()
    hopper().transpose(Image.Transpose.ROTATE_90).save(file, "JPEG", exif=lying, quality=95)
    for image in (file.getvalue(), Image.open(file)):
        other = found(image)
        assert other.turn == 0
        assert agreement(other.crop, face.crop) > 0.99


def test_several_faces_are_all_found(face: Face) -> None:
    many = find_faces([pair()])[0]
    assert len(many.faces) == 2
    assert many.missing is None
    assert sorted(round(float(one.box[0]) / 512) for one in many.faces) in ([0, 1], [0, 2])
    assert rivals(many.faces[0], many.faces) == 2
    assert rivals(face, [face]) == 1


def test_of_several_faces_the_wanted_one_is_taken() -> None:
    def at(x: float, y: float, side: float) -> Face:
        quality = Quality(1, 1, 1, 1, 0)
        return Face(Image.new("RGB", (1, 1)), np.array([x, y, x + side, y + side]), TEMPLATE, 1.0, quality)

    small_in_the_middle, large_beside, huge_at_the_edge = at(95, 95, 10), at(60, 85, 60), at(0, 0, 65)
    faces = [small_in_the_middle, huge_at_the_edge, large_beside]
    assert choose(faces, (200, 200), "central") is small_in_the_middle
    assert choose(faces, (200, 200), "largest") is huge_at_the_edge
    assert choose(faces, (200, 200), "prominent") is large_beside


def test_a_face_of_eight_pixels_is_not_found_and_one_far_away_is_at_the_second_scale() -> None:
    canvas = Image.new("RGB", (400, 400), (120, 120, 120))
    canvas.paste(hopper().crop((120, 60, 400, 360)).resize((14, 15)), (200, 200))
    assert reason(canvas).reason == "no face found"
    wide = Image.new("RGB", (2400, 1600), (120, 120, 120))
    wide.paste(hopper().resize((205, 240)), (1000, 700))
    far = found(wide)  # 20 pixels at 640, 40 at 1,280
    assert np.linalg.norm(far.landmarks - (np.array(BY_EYE) * 0.4 + [1000, 700]), axis=1).max() < 8


def test_pictures_without_a_face_give_a_reason() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (250, 250, 3), dtype=np.uint8)
    flower = FLOWER.read_bytes()
    for image in (noise, flower, np.full((300, 200, 3), 127, np.uint8)):
        assert reason(image) == NoFace("no face found", unreadable=False)
    assert reason(np.zeros((8, 8, 3), np.uint8)).reason == "8 x 8 pixels; a face needs at least 16"


# What is no photograph


def test_files_of_other_kinds_say_what_they_are(tmp_path: Path) -> None:
    video, whole = b"\0\0\0\x18ftypmp42" + bytes(99), HOPPER.read_bytes()
    (tmp_path / "cut.png").write_bytes(png(hopper())[:5000])
    cases = {
        b"%PDF-1.7 ...": "a PDF document; save its page as a picture",
        video: "a video; save a frame of it as a picture",
        b"RIFF1234AVI LIST": "a video; save a frame of it as a picture",
        b"\x1aE\xdf\xa3" + bytes(20): "a video; save a frame of it as a picture",
        b"words": "no image of a known kind",
        b"": "zero bytes",
        str(tmp_path / "absent.jpg"): "No such file or directory",
    }
    for image, why in cases.items():
        assert reason(image) == NoFace(why, unreadable=True)
    assert reason(tmp_path / "cut.png").reason.startswith("cannot be decoded")
    mixed = find_faces([video, whole, b""])
    assert [one.missing is None for one in mixed] == [False, True, False]


def test_heic_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facemetric.data.images.phones_read", lambda ending: False)
    with pytest.raises(BadImage, match=r"a HEIC photograph; pip install 'facemetric\[heic\]'"):
        open_photograph(b"\0\0\0\x18ftypheic" + bytes(40))


def test_heic_photographs_are_read_and_turned_upright(face: Face, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    lying = Image.Exif()
    lying[0x0112] = 6
    (tmp_path / "anna").mkdir()
    heif.from_pillow(hopper()).save(tmp_path / "anna" / "1.heic", quality=95)
    turned = heif.from_pillow(hopper().transpose(Image.Transpose.ROTATE_90))
    turned.save(tmp_path / "anna" / "2.HEIC", quality=95, exif=lying.tobytes())
    index = read_index(tmp_path)
    assert (len(index), index.ignored) == (2, 0)
    for row in range(2):
        for image in (index.read(row), decode(index.read(row))):
            other = found(image)
            assert other.turn == 0
            assert agreement(other.crop, face.crop) > 0.99
    whole = index.read(0)
    assert reason(whole[:3000]).reason.startswith("cannot be decoded")
    assert reason(whole[:3000]).unreadable


def test_a_photograph_of_many_megapixels_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_PIXELS", 200_000)
    monkeypatch.setattr(reading, "DRAFT_SIDE", 200)
    assert open_photograph(HOPPER.read_bytes()).size == (256, 300)
    with pytest.raises(BadImage, match="512 x 600 pixels, at most 200000"):
        open_photograph(png(hopper()))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


# Crops


def test_a_crop_stays_as_it_is(face: Face) -> None:
    for size in (112, 224, 60):
        crop = face.crop.resize((size, size), Image.Resampling.BICUBIC)
        for options in (DEFAULTS, AS_CROPS):
            again = face_or_reason(crop, options=options)
            assert isinstance(again, Face)
            assert again.was_crop
            np.testing.assert_array_equal(np.asarray(again.crop), np.asarray(crop))
    assert crop_looks([face.crop])[0].aligned
    assert not crop_looks([hopper()])[0].aligned
    assert not found(face.crop, given="photographs").was_crop


def test_a_photograph_is_no_crop(face: Face) -> None:
    square = hopper().crop((0, 0, 512, 512))
    assert not found(square).was_crop
    assert not crop_looks([square.resize((112, 112))])[0].aligned
    assert "no crop of a face" in reason(hopper().crop((0, 0, 512, 200)), given="crops").reason


def test_pictures_of_other_things_are_no_crops(face: Face) -> None:
    rng = np.random.default_rng(0)
    digit = np.zeros((28, 28, 3), np.uint8)
    digit[4:24, 12:16] = 255
    drawn = np.full((112, 112, 3), 250, np.uint8)
    drawn[30:34, 20:92], drawn[80:84, 20:92] = 10, 10
    others = [
        Image.new("RGB", (112, 112), (200, 30, 90)),
        Image.fromarray(rng.integers(0, 256, (112, 112, 3), dtype=np.uint8)),
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
            (112, 112), Image.Resampling.BICUBIC
        ),
        Image.fromarray(digit),
        Image.fromarray(drawn),
        decode(FLOWER.read_bytes()).crop((200, 100, 400, 300)).resize((112, 112)),
    ]
    for image in others:
        assert reason(image, given="crops").reason.startswith("no face found in the crop (face score 0.")
        assert reason(image).reason == "no face found"


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_crop_that_is_not_upright_is_refused_or_turned(face: Face, quarters: int) -> None:
    other = face.crop.rotate(90 * quarters)
    why = reason(other, given="crops").reason
    assert "not upright" in why or "no face found in the crop" in why
    assert not crop_looks([other])[0].aligned


@pytest.mark.parametrize(
    "box",
    [(0, 0, 56, 112), (56, 0, 112, 112), (0, 0, 112, 62), (0, 0, 112, 72), (0, 72, 112, 112)],
)
def test_half_a_crop_is_refused(face: Face, box: tuple[int, int, int, int]) -> None:
    half = face.crop.copy()
    half.paste((127, 127, 127), box)
    assert is_whole(face.crop)
    assert not is_whole(half)
    assert face_or_reason(half, options=AS_CROPS)[0] in (
        "half of the face is not in the picture",
        reason(half, given="crops").reason,
    )


# Real faces


def test_real_crops_are_recognised_and_hardly_any_is_refused(real_data: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("lfw112", "pins112"):
        index = read_index(real_data / f"{name}.tar")
        rows = rng.choice(len(index), 60, replace=False).tolist()
        looks = crop_looks([decode(index.read(row)) for row in rows])
        assert np.mean([look.aligned for look in looks]) >= 0.95
        assert np.mean([look.fault != "" for look in looks]) <= 0.02


def test_real_faces_return_to_the_template_from_photographs(real_data: Path) -> None:
    """24 LFW crops on canvases of 400 pixels, turned by up to 30 degrees and 48 to 160 pixels wide."""
    rng = np.random.default_rng(1)
    crops = crops_of(real_data, "lfw112", 24)
    maps = [scattered(rng.uniform(-30, 30), rng.uniform(0.6, 2), rng.uniform(180, 220, 2)) for _ in crops]
    photographs = [photograph(crop, there, rng) for crop, there in zip(crops, maps, strict=True)]
    errors = []
    for faces, there in zip(find_faces(photographs), maps, strict=True):
        assert not any(face.was_crop for face in faces.faces)
        errors.append(min(error(face, there) for face in faces.faces))
    assert max(errors) < 6
    assert np.median(errors) < 2


def test_a_crop_that_one_look_misses_is_saved_by_the_other(
    face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = crop_looks([face.crop])[0]._replace(score=0.3)
    monkeypatch.setattr("facemetric.faces.crops.crop_looks", lambda images: [blind] * len(images))
    crop = found(face.crop, given="crops")
    assert crop.was_crop
    np.testing.assert_array_equal(np.asarray(crop.crop), np.asarray(face.crop))
    assert crop.quality.figure > 0.8
    # Neither a face elsewhere in the picture, nor one that is turned, makes it a crop.
    beside = Image.new("RGB", (300, 300), (127, 127, 127))
    beside.paste(face.crop, (188, 188))
    assert "face score 0.30" in reason(beside, given="crops").reason
    assert "face score 0.30" in reason(face.crop.rotate(180), given="crops").reason
    off = blind._replace(score=0.9, away=14.0)  # not aligned well, and the detector finds nothing
    monkeypatch.setattr("facemetric.faces.crops.crop_looks", lambda images: [off] * len(images))
    assert found(np.full((112, 112, 3), 90, np.uint8)).was_crop
    assert reason(np.full((300, 300, 3), 90, np.uint8)).reason == "no face found"


def test_a_small_picture_is_enlarged_where_nothing_is_found() -> None:
    seen: list[tuple[int, int]] = []

    def blind(images: Sequence[Image.Image]) -> list[list[Detection]]:
        seen.extend(image.size for image in images)
        return [[] for _ in images]

    assert isinstance(face_or_reason(np.zeros((120, 200, 3), np.uint8), blind, AS_PHOTOGRAPHS), NoFace)
    assert seen[:2] == [(200, 120), (400, 240)]


def test_detections_below_the_least_score_are_left_out() -> None:
    def doubtful(images: object) -> list[list[Detection]]:
        return [[Detection(np.array([170.0, 110, 350, 330]), np.array(BY_EYE, float), 0.89)]]

    assert isinstance(face_or_reason(hopper(), doubtful, AS_PHOTOGRAPHS), NoFace)
    assert isinstance(face_or_reason(hopper(), doubtful, AS_PHOTOGRAPHS._replace(min_score=0.8)), Face)
