"""Pictures as users have them go to embeddings, and what is none gets our error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from photographs import HOPPER, hopper
from PIL import Image
from torch import Tensor

from facemetric import load_embedder, similarity
from facemetric.data.batches import chunks
from facemetric.data.images import Preprocess, normalise
from facemetric.data.index import index_files
from facemetric.data.loader import load_batches
from facemetric.data.transforms import eval_transform
from facemetric.errors import DataError
from facemetric.evaluation.embed import embed_index
from facemetric.faces.crops import Face
from facemetric.faces.finder import FaceFinder
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.model.pictures import batches_of, crop_side, picture_size
from facemetric.model.weights.save_load import save_weights

CROP = (0.12, 0.175, 0.12, 0.05)


def small_embedder(**options: Any) -> Embedder:
    torch.manual_seed(0)
    pre = Preprocess(size=(32, 24), mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), **options)
    return build_embedder("test_resnet", preprocess=pre, embedding_size=16).eval()


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A large JPEG, one that EXIF turns, a grey PNG, one with transparency, none of them square."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)

    def picture(width: int, height: int) -> Image.Image:
        small = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    picture(900, 700).save(folder / "large.jpg", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(120, 80).save(folder / "turned.jpg", exif=turned)
    picture(50, 70).convert("L").save(folder / "grey.png")
    picture(40, 60).convert("RGBA").save(folder / "clear.png")
    return [folder / name for name in ("large.jpg", "turned.jpg", "grey.png", "clear.png")]


@pytest.mark.parametrize("options", [{}, {"crop": CROP, "interpolation": "bicubic"}, {"color": "bgr"}])
def test_the_transform_gives_the_pixels_of_evaluation(
    photographs: list[Path], options: dict[str, Any]
) -> None:
    embedder = small_embedder(**options)
    index = index_files(list(map(str, photographs)))
    photographs = [Path(index.name(row)) for row in range(4)]  # in the order of the index
    pre = embedder.preprocess
    (batch,) = load_batches(index, chunks(4, 4), eval_transform(pre), seed=0, epoch=0, workers=0)
    evaluated = normalise(batch.images, pre, "cpu")
    (pixels,) = batches_of(photographs, embedder.transform, 4)
    assert torch.equal(normalise(torch.from_numpy(pixels), pre, "cpu"), evaluated)
    for row, path in enumerate(photographs):
        if path.name == "large.jpg":  # decoded at a smaller scale, before a transform sees it
            continue
        with Image.open(path) as image:
            mine = embedder.transform(image)
        assert mine.shape == (3, 32, 24)
        assert torch.equal(mine, evaluated[row])
    by_index = embed_index(embedder, index).table
    np.testing.assert_allclose(embedder.embed(photographs), by_index.embeddings, atol=1e-6)
    by_index = embed_index(embedder, index, flip=True).table
    np.testing.assert_allclose(embedder.embed(photographs, flip=True), by_index.embeddings, atol=1e-6)


def test_a_picture_is_the_same_in_every_form(photographs: list[Path]) -> None:
    embedder, path = small_embedder(crop=CROP), photographs[2]
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    forms = [path, str(path), image, array, tensor, array[:, :, 0], tensor[:1], Image.open(path)]
    found = embedder.embed(forms, batch_size=3)
    assert found.shape == (8, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, found[:1].repeat(8, axis=0), atol=1e-6)
    alone: list[Any] = [path, image, array, tensor, array[None], tensor[None], iter([path])]
    for each in alone:
        np.testing.assert_allclose(embedder.embed(each), found[:1], atol=1e-6)


def test_memory_holds_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = small_embedder()
    given, sizes = 0, []
    forward = Embedder.forward

    def watched(self: Embedder, images: Tensor) -> Tensor:
        sizes.append((given, len(images)))
        return forward(self, images)

    def pictures() -> Iterator[np.ndarray]:
        nonlocal given
        for _ in range(10):
            given += 1
            yield np.full((30, 30, 3), 20 * given, np.uint8)

    monkeypatch.setattr(Embedder, "forward", watched)
    assert embedder.embed(pictures(), batch_size=4).shape == (10, 16)
    assert sizes == [(4, 4), (8, 4), (10, 2)]


def test_the_mode_is_as_it_was() -> None:
    embedder = small_embedder().train()
    picture = np.zeros((30, 30, 3), np.uint8)
    one = embedder.embed(picture)
    assert embedder.training
    np.testing.assert_array_equal(one, embedder.eval().embed(picture))


UNIT = torch.linspace(0, 1, 192).reshape(3, 8, 8)
WHITENED = 4 * UNIT - 2


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "no images came; needed is one or more"),
        (iter(()), "no images came"),
        (
            [UNIT],
            r"picture 0 is a float32 tensor of shape \(3, 8, 8\) with values of 0\.\.1; .*: \(255 \* x\)\.round\(\)",
        ),
        ([UNIT.numpy()], r"float32 array .*\.astype\('uint8'\) makes them of 0\.\.1"),
        (
            [WHITENED],
            r"before any normalisation; a batch that is normalised already goes to embedder\(batch\)",
        ),
        ([np.zeros((8, 8, 3), np.int64)], r"a int64 array .*: astype\('uint8'\) makes them"),
        ([np.zeros((3, 8, 8), np.uint8)], r"needed is \(H, W, 3\); transpose\(1, 2, 0\)"),
        ([torch.zeros(8, 8, 3, dtype=torch.uint8)], r"needed is \(3, H, W\); permute\(2, 0, 1\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), r"picture 0 .*needed is \(3, H, W\)"),
        (np.zeros((8, 8, 4), np.uint8), r"of shape \(8, 8, 4\); needed is \(H, W, 3\)"),
        (np.zeros((2, 2, 8, 8, 3), np.uint8), r"needed is an array \(N, H, W, 3\)"),
        ([np.zeros((0, 8, 3), np.uint8)], "holds no pixel"),
        ([torch.zeros(3, 0, 8)], "float32 tensor"),
        (7, "pictures are a int; needed is a list of paths, PIL images"),
        ([None], "picture 0 is a NoneType; needed are paths, PIL images"),
        (["nowhere.jpg"], "nowhere.jpg: no such file; give an image"),
        (["a\0b"], "cannot be read"),
        ([Path(__file__)], r"test_pictures\.py cannot be read: no image of a known kind"),
        ([Path(__file__).parent], r"is a folder; give image files"),
    ],
)
def test_what_is_no_picture_gets_our_error(pictures: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        small_embedder().embed(pictures)


@pytest.mark.parametrize(
    "images", [torch.zeros(3, 8, 8), torch.zeros(2, 8, 8, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)]
)
def test_the_network_refuses_what_are_no_normalised_images(images: Tensor) -> None:
    with pytest.raises(DataError, match=r"needed are normalised images \(B, 3, H, W\)"):
        small_embedder()(images)


def test_similarity_is_the_cosine() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(5, 7)), random.normal(size=(3, 7))
    expected = [[x @ y / np.sqrt((x @ x) * (y @ y)) for y in b] for x in a]
    np.testing.assert_allclose(similarity(a, b), expected, atol=1e-6)
    np.testing.assert_allclose(similarity(a * 1e-160, b * 1e200), expected, atol=1e-6)
    assert similarity(a, b).dtype == np.float32
    assert similarity(a[0], a[0]) == pytest.approx(1, abs=1e-6)
    assert similarity(a, a).max() <= 1
    with pytest.raises(DataError, match="have 7 and 6 numbers"):
        similarity(a, b[:, 1:])
    with pytest.raises(DataError, match="embedding 1 of b is all zeros or not finite"):
        similarity(a, np.array([b[0], 0 * b[0]]))


def test_reprs_are_one_line() -> None:
    embedder = small_embedder(crop=CROP)
    assert repr(embedder) == "Embedder(test_resnet, 24 x 32 pixels -> 16 numbers, on cpu)"
    assert "\n" not in repr(embedder.transform)
    assert "crop=(0.12, 0.175, 0.12, 0.05)" in repr(embedder.transform)


def test_the_size_of_a_file_is_upright(photographs: list[Path]) -> None:
    assert [picture_size(path) for path in photographs] == [(900, 700), (80, 120), (50, 70), (40, 60)]
    assert picture_size(np.zeros((4, 6, 3), np.uint8)) == picture_size(torch.zeros(3, 4, 6)) == (6, 4)


@pytest.mark.parametrize("options", [{}, {"crop": CROP}, {"color": "bgr"}])
def test_plain_timm_sees_the_same_pixels_or_says_what_it_leaves_out(
    photographs: list[Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    save_weights(tmp_path / "w", small_embedder(**options), provenance={}, metrics={})
    embedder = load_embedder(tmp_path / "w")
    model = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    by_timm = timm.data.create_transform(**timm.data.resolve_data_config(model=model), is_training=False)
    image = Image.open(photographs[3]).convert("RGB")
    with torch.inference_mode():
        ours, theirs = (model(transform(image)[None])[0] for transform in (embedder.transform, by_timm))
    mine = embedder.embed(image)[0]
    assert float(similarity(mine, ours.numpy())) == pytest.approx(1, abs=1e-5)
    notes = model.pretrained_cfg.get("notes")
    if not options:
        assert float(similarity(mine, theirs.numpy())) == pytest.approx(1, abs=1e-5)
        assert not notes
    else:
        assert float(similarity(mine, theirs.numpy())) < 0.9999
        assert "facemetric.load_embedder(...).transform does it all" in notes[0]


# Photographs


@pytest.fixture(scope="module")
def of_faces() -> Embedder:
    torch.manual_seed(0)
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32))).eval()
    embedder.pictures = "faces"
    return embedder


def test_faces_are_found_turned_and_cut_and_crops_left_alone(of_faces: Embedder, tmp_path: Path) -> None:
    face = FaceFinder().one(HOPPER)
    assert isinstance(face, Face)
    crop = of_faces.embed(face.crop, faces="off")
    pixels = np.asarray(hopper())
    lying = hopper().transpose(Image.Transpose.ROTATE_90)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    found = of_faces.embed([HOPPER, face.crop, pixels, tensor, lying, str(HOPPER)])
    np.testing.assert_allclose(found, np.repeat(crop, 6, 0), atol=1e-5)
    # A large crop is read as it is without a look for faces, to the same bits.
    face.crop.resize((400, 400)).save(tmp_path / "crop.jpg")
    one, other = (of_faces.embed(tmp_path / "crop.jpg", faces=faces) for faces in ("auto", "off"))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(of_faces.embed(HOPPER, faces=FaceFinder()), crop, atol=1e-5)
    whole = of_faces.embed(HOPPER, faces="off")
    assert np.abs(whole - crop).max() > 1e-3
    of_faces.pictures = ""
    np.testing.assert_array_equal(of_faces.embed(HOPPER), whole)
    np.testing.assert_allclose(of_faces.embed(HOPPER, faces="photographs"), crop, atol=1e-5)
    of_faces.pictures = "faces"


def test_a_picture_without_a_face_is_named(of_faces: Embedder, tmp_path: Path) -> None:
    Image.new("RGB", (200, 150), (90, 140, 220)).save(tmp_path / "sky.png")
    with pytest.raises(
        DataError, match=r"sky\.png: no face found; give a photograph with a face, or faces='off'"
    ):
        of_faces.embed([HOPPER, tmp_path / "sky.png"])
    with pytest.raises(DataError, match="picture 1: no face found"):
        of_faces.embed([hopper(), np.zeros((90, 90, 3), np.uint8)])
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 ...")
    with pytest.raises(DataError, match=r"paper\.pdf cannot be read: a PDF document"):
        of_faces.embed(tmp_path / "paper.pdf")
    with pytest.raises(DataError, match=r"absent\.jpg: no such file"):
        of_faces.embed([tmp_path / "absent.jpg"])


def test_crops_are_as_large_as_the_network_needs() -> None:
    assert crop_side(Preprocess(size=(112, 112), crop=(0.1, 0.17, 0.1, 0.03))) == 112
    assert crop_side(Preprocess(size=(96, 96))) == 112
    assert crop_side(Preprocess(size=(224, 224))) == 224
    assert crop_side(Preprocess(size=(224, 224), crop=(0.1, 0.2, 0.1, 0.0))) == 280
