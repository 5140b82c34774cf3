"""`Gallery` in Python: enrolling, asking, removing, checking; photographs that are none, or not clear."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from photographs import FLOWER, HOPPER, hopper, pair
from PIL import Image

from facemetric import Gallery
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.gallery import gallery as module
from facemetric.model.weights.save_load import load_embedder


def bytes_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def people(faces: Path) -> dict[str, list[Path]]:
    return {folder.name: sorted(folder.iterdir()) for folder in sorted(faces.iterdir())[:8]}


@pytest.fixture
def gallery(untrained: Path, people: dict[str, list[Path]], tmp_path: Path) -> Gallery:
    """Four pictures of each of eight people, by weights that take pictures as they are."""
    made = Gallery(tmp_path / "g", weights=untrained, device="cpu")
    for name, photos in people.items():
        made.add(name, photos[:4])
    return made


def test_who_is_enrolled(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    assert gallery.people == dict.fromkeys(people, 4)
    assert len(gallery) == 32
    name, photos = next(iter(people.items()))
    assert gallery.photos(name) == [str(photo) for photo in photos[:4]]
    assert repr(gallery) == f"Gallery('{gallery.path}', 8 people, 32 faces)"
    assert Gallery(gallery.path, device="cpu").people == gallery.people  # the weights are known
    with pytest.raises(DataError, match="nobody called 'nobody' is enrolled"):
        gallery.photos("nobody")


def test_an_enrolled_picture_is_found_in_every_form(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    name, photos = list(people.items())[3]
    image = Image.open(photos[0]).convert("RGB")
    for picture in (photos[0], str(photos[0]), photos[0].read_bytes(), image, np.asarray(image)):
        answer = gallery.identify(picture, threshold=0.999, top=2)
        assert answer.names == [name]
        (face,) = answer.faces
        assert face.score == pytest.approx(1, abs=1e-5)
        assert len(face.matches) == 2
        assert face.photos[0] == str(photos[0])
        assert Image.open(io.BytesIO(face.crop)).size == image.size
        assert face.face.box == (0, 0, *image.size)
    other = gallery.identify(photos[5], threshold=1.0)
    assert other.names == []
    assert other.faces[0].name == ""
    assert other.faces[0].matches[0].score < 1
    emb = load_embedder(gallery.weights_folder).embed([photos[5]])
    assert gallery.search(emb)[0] == list(other.faces[0].matches)
    assert other.to_dict()["faces"][0]["name"] is None


def test_what_is_enrolled_already_is_left_out(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    name, photos = next(iter(people.items()))
    added = gallery.add(name, photos)
    assert (added.faces, added.already, added.photographs) == (2, 4, 6)
    assert gallery.people[name] == 6
    again = gallery.add(f"  {name} ", [photos[0], photos[0]])
    assert (again.faces, again.already) == (0, 2)
    assert again.text() == "2 photographs enrolled before"
    copies = gallery.add("new", [hopper(), hopper()])
    assert (copies.faces, copies.already) == (1, 1)


def test_one_picture_under_two_names_is_said(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    (one, photos), (two, _) = list(people.items())[:2]
    image = Image.open(photos[0]).convert("RGB")
    added = gallery.add(two, [photos[0], image.point(lambda value: min(value + 1, 255))])
    assert added.faces == 2
    assert [found[1:3] + found[4:] for found in added.twice] == [(two, one, True), (two, one, False)]
    assert f"{photos[0]} as {two!r}, {photos[0]} as {one!r} (the same file)" in added.text()
    found = gallery.check()
    assert frozenset((one, two)) in {frozenset(pair[::2]) for pair in found.twice}
    assert "one picture under two names:" in found.text()


def test_check_finds_people_who_look_like_one(gallery: Gallery) -> None:
    emb = np.concatenate(gallery.enrolled.embeddings)
    near = emb[0] + 0.06 * np.random.default_rng(0).standard_normal(emb.shape[1]) / np.sqrt(emb.shape[1])
    gallery.add_embeddings([emb[0] + 0.3 * emb[1], near + 0.3 * emb[1]], ["twin", "other twin"])
    found = gallery.check()
    assert (found.faces, found.people, found.tried) == (34, 10, 34)
    assert ("other twin", "twin") in {pair[:2] for pair in found.alike} | {
        tuple(sorted(pair[::2])) for pair in found.twice
    }
    assert found.to_dict()["faces"] == 34


def test_removing(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    one, two, three = list(people)[:3]
    with pytest.raises(DataError, match=rf"nobody called '{one}x' is enrolled in .*: did you mean '{one}'\?"):
        gallery.remove([two, f"{one}x"])
    assert gallery.people == dict.fromkeys(people, 4)  # nobody went
    assert gallery.remove([two]) == 4
    assert two not in gallery.people
    photo = str(people[one][0])
    with pytest.raises(DataError, match=r"no photograph 'nowhere\.jpg' in"):
        gallery.remove(photos=["nowhere.jpg"])
    with pytest.raises(DataError, match=f"none of these photographs is of {three}"):
        gallery.remove(three, photos=[photo])
    assert gallery.remove(one, photos=[photo]) == 1
    assert gallery.people[one] == 3
    with pytest.raises(ConfigError, match="nothing to remove"):
        gallery.remove()


def test_the_threshold_follows_who_is_enrolled(gallery: Gallery, people: dict[str, list[Path]]) -> None:
    first = gallery.threshold(0.05)
    assert (first.people, first.rows, first.from_people) == (8, 32, 1.0)  # the weights hold none
    kept = gallery.path / module.OTHERS
    assert kept.is_file()
    kept.write_bytes(b"damaged")
    assert Gallery(gallery.path, device="cpu").threshold(0.05) == first
    gallery.remove(list(people)[:5])
    with pytest.raises(WeightsError, match="no threshold for 3 enrolled people"):
        gallery.threshold(0.05)
    for fpir in (0, 1, 2):
        with pytest.raises(ConfigError, match="it is a share above 0 and below 1"):
            gallery.threshold(fpir)


def test_a_question_needs_somebody_enrolled(untrained: Path, tmp_path: Path) -> None:
    empty = Gallery(tmp_path / "g", weights=untrained, device="cpu")
    with pytest.raises(DataError, match=r"nobody is enrolled in .*; `facemetric gallery add"):
        empty.identify(HOPPER)
    assert empty.check().people == 0
    with pytest.raises(DataError, match=r"nobody called 'ada' is enrolled in .*: nobody is"):
        empty.remove("ada")


def test_weights_that_are_others_or_gone(
    gallery: Gallery, own_weights: Path, tmp_path: Path, people: dict[str, list[Path]]
) -> None:
    with pytest.raises(WeightsError, match=r"was enrolled with other weights .* than faces-96"):
        Gallery(gallery.path, weights="faces-96")
    moved = Gallery(tmp_path / "moved", weights=own_weights, device="cpu")
    moved.add("ada", next(iter(people.values()))[:1])
    shutil.move(own_weights, tmp_path / "elsewhere")
    later = Gallery(tmp_path / "moved", device="cpu")
    assert later.people == {"ada": 1}  # needs no weights
    with pytest.raises(WeightsError, match="which is not there; name the weights"):
        later.identify(HOPPER)
    again = Gallery(tmp_path / "moved", weights=tmp_path / "elsewhere", device="cpu")
    assert again.identify(next(iter(people.values()))[0], threshold=0.99).names == ["ada"]


def test_embeddings_of_ones_own(gallery: Gallery) -> None:
    size = gallery.folder.list.embedding_size
    emb = np.random.default_rng(0).standard_normal((3, size)) * 5
    assert gallery.add_embeddings(emb, ["x", "y", "x"], ["1", "2", "3"]) == 3
    assert gallery.photos("x") == ["1", "3"]
    assert gallery.search(emb[1:2], 1)[0][0][:2] == ("y", pytest.approx(1, abs=1e-6))
    with pytest.raises(DataError, match=rf"this gallery needs \(N, {size}\), and N of each"):
        gallery.add_embeddings(emb[:, 1:], ["x", "y", "x"])
    with pytest.raises(DataError, match="cannot be a person's name"):
        gallery.add_embeddings(emb[:1], [" "])


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x00"])
def test_what_is_no_name(gallery: Gallery, name: str) -> None:
    with pytest.raises(DataError, match="cannot be a person's name; give one line of text"):
        gallery.add(name, hopper())


def test_mirror_images_and_pictures_are_chosen_once(
    untrained: Path, people: dict[str, list[Path]], tmp_path: Path
) -> None:
    photos = next(iter(people.values()))[:1]
    made = Gallery(tmp_path / "g", weights=untrained, device="cpu", flip=True, keep_crops=False)
    made.add("ada", photos)
    (emb,) = Gallery(tmp_path / "g", device="cpu").enrolled.embeddings
    network = load_embedder(untrained)
    np.testing.assert_allclose(emb, network.embed(photos, flip=True), atol=1e-5)
    assert not np.allclose(emb, network.embed(photos), atol=1e-3)
    assert made.enrolled.crop(0) == b""


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Grace Hopper, by weights of faces, in which faces are looked for."""
    made = Gallery(tmp_path_factory.mktemp("known") / "g", weights="faces-96", device="cpu")
    assert made.add("Grace Hopper", HOPPER).faces == 1
    return made


def test_a_face_is_found_and_named(known: Gallery) -> None:
    tilted = hopper().rotate(8, resample=Image.Resampling.BICUBIC).resize((400, 470))
    answer = known.identify(tilted, fpir=0.01)
    assert answer.names == ["Grace Hopper"]
    left, top, right, bottom = answer.faces[0].face.box
    assert 0 < left < right < 400
    assert 0 < top < bottom < 470
    assert Image.open(io.BytesIO(answer.faces[0].crop)).size == (112, 112)
    assert answer.threshold.people == 1


def test_several_faces_each_get_an_answer(known: Gallery) -> None:
    answer = known.identify(pair())
    assert len(answer.faces) == 2
    assert answer.names == ["Grace Hopper", "Grace Hopper"]
    assert len(answer.text().splitlines()) == 2


def small_face() -> bytes:
    """A face of 8 pixels in a room of one colour."""
    scene = Image.new("RGB", (300, 300), (120, 120, 120))
    scene.paste(hopper().resize((30, 35)), (120, 120))  # the face takes a quarter of the width
    return bytes_of(scene)


BAD = {
    "sky": (bytes_of(Image.new("RGB", (200, 200), (120, 180, 250))), "no face found"),
    "flower": (FLOWER.read_bytes(), "no face found"),
    "pdf": (b"%PDF-1.7 and so on", "a PDF document; save its page as a picture"),
    "video": (b"\0\0\0\x18ftypmp42" + bytes(99), "a video; save a frame of it as a picture"),
    "text": (b"no picture", "no image of a known kind"),
    "empty": (b"", ""),
    "cut": (HOPPER.read_bytes()[:5000], ""),
}


@pytest.mark.parametrize("what", BAD)
def test_what_shows_no_face_is_skipped_with_its_reason(known: Gallery, what: str) -> None:
    content, reason = BAD[what]
    before = known.people
    added = known.add("nobody", [content])
    assert (added.faces, len(added.skipped)) == (0, 1)
    assert reason in added.skipped[0][1]
    assert added.skipped[0][1]
    assert "1 photograph skipped:" in added.text()
    answer = known.identify(content)
    assert (answer.faces, answer.missing) == ((), added.skipped[0][1])
    assert known.people == before


def test_a_face_of_8_pixels_is_not_enrolled_and_answered_with_a_warning(known: Gallery) -> None:
    added = known.add("nobody", [small_face()])
    assert added.faces == 0
    assert "the face is 11 pixels wide, too small to tell people apart by" in added.skipped[0][1]
    answer = known.identify(small_face())
    assert answer.faces[0].face.is_small
    assert "(a very small face: trust this less)" in answer.text()
    assert not known.identify(HOPPER).faces[0].face.is_small


def test_whose_face_is_not_clear_is_skipped(known: Gallery, tmp_path: Path) -> None:
    other = Gallery(tmp_path / "g", weights="faces-96", device="cpu")
    added = other.add("Grace", [pair(), "nowhere.jpg", tmp_path])
    assert [reason for _, reason in added.skipped] == [
        "2 faces of like size; whose is it?",
        "no such file",
        "a folder, not a photograph",
    ]
    assert other.add("Grace", pair(), take_largest=True).faces == 1
