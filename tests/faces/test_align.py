"""The faces of an index on disk: crops stay where they are, photographs are cut once, pictures without one are left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from photographs import album, hopper, pair
from PIL import Image

import facemetric as fm
from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError
from facemetric.faces import align as aligning
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.faces.crops import find_faces

AUTO = AlignOptions(given="auto")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two people, an aligned crop, a picture of two faces, one without a face, one that is broken."""
    folder = album(tmp_path_factory.mktemp("mixed"), images=1)
    find_faces([hopper()])[0].faces[0].crop.save(folder / "person0" / "crop.png")
    Image.new("RGB", (200, 200), (90, 140, 220)).save(folder / "person1" / "sky.png")
    (folder / "person1" / "broken.jpg").write_bytes(b"no picture")
    pair().resize((512, 300)).save(folder / "party.jpg")
    return folder


def test_photographs_are_read_from_their_crops_and_crops_from_where_they_are(
    mixed: Path, tmp_path: Path
) -> None:
    index = read_index(mixed, loose=True)
    found = cut_faces(index, tmp_path / "faces", AUTO, every=True, workers=0)
    names = [found.index.name(i) for i in range(len(found.index))]
    assert sorted(names) == [
        "party.jpg",
        "party.jpg#face2",
        "person0/0.jpg",
        "person0/crop.png",
        "person1/0.jpg",
        "person1/broken.jpg",
    ]
    assert set(found.quality) == set(names) - {"person1/broken.jpg"}
    assert all(0 < quality <= 1 for quality in found.quality.values())
    assert (found.cut, found.without) == (4, 1)
    assert found.text() == (
        f"4 faces cut from photographs, 1 picture without a face left out: {tmp_path / 'faces' / 'aligned.csv'}"
    )
    crop, photograph = (found.index.find(name) for name in ("person0/crop.png", "person0/0.jpg"))
    assert crop is not None
    assert photograph is not None
    assert found.index.read(crop) == (mixed / "person0" / "crop.png").read_bytes()
    expected = find_faces([mixed / "person0" / "0.jpg"])[0].faces[0].crop
    np.testing.assert_array_equal(np.asarray(decode(found.index.read(photograph))), np.asarray(expected))
    assert Path(found.index.location(photograph).file).parent == tmp_path / "faces"
    both = [found.index.find(name) for name in ("party.jpg", "party.jpg#face2")]
    assert found.index.read(both[0]) != found.index.read(both[1])  # type: ignore[arg-type]
    # A part of it is still cut.
    part = found.index.select(found.index.identity == found.index.identity[photograph])
    assert part.read(part.find("person0/0.jpg") or 0) == found.index.read(photograph)


def test_without_every_one_face_of_a_picture_counts(mixed: Path, tmp_path: Path) -> None:
    index = read_index(mixed, loose=True)
    found = cut_faces(index, tmp_path / "faces", AUTO, workers=0)
    names = [found.index.name(i) for i in range(len(found.index))]
    assert "party.jpg" in names
    assert len(names) == len(index) - 1
    assert found.index.state_key != index.select(np.arange(len(index) - 1)).state_key


def test_faces_are_cut_once_and_again_for_other_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = album(tmp_path / "photos", people=1), tmp_path / "faces"
    looked: list[int] = []

    def counted(images: object, *options: object) -> object:
        looked.append(len(images))  # type: ignore[arg-type]
        return find_faces(images, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(aligning, "find_faces", counted)
    first = cut_faces(read_index(photos), out, AUTO, workers=0)
    again = cut_faces(read_index(photos), out, AUTO, workers=0)
    assert looked == [2]
    assert again.quality == first.quality
    hopper().resize((300, 350)).save(photos / "person0" / "0.jpg")
    other = cut_faces(read_index(photos), out, AUTO, workers=0)
    assert looked == [2, 2]
    assert other.quality != first.quality
    assert len(list(out.glob("*.png"))) == 2
    strict = AlignOptions(given="auto", min_quality=1.0)
    with pytest.raises(
        DataError, match=r"none of 2 pictures shows a face \(the face is of quality 0\.\d\d, below"
    ):
        cut_faces(read_index(photos), out, strict, workers=0)


def test_a_folder_of_crops_that_align_made_is_not_removed(tmp_path: Path) -> None:
    photos = album(tmp_path / "photos", people=1, images=1)
    fm.align(str(photos), out=tmp_path / "faces", workers=0)
    with pytest.raises(ConfigError, match="holds crops made with"):
        cut_faces(read_index(photos), tmp_path / "faces", AUTO, workers=0)
    assert (tmp_path / "faces" / "person0" / "0.jpg").is_file()
