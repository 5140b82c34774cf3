"""The default detector against facenet-pytorch's, the package that its weights are from, and its parts by hand."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from make_detector_graphs import NETS, make, tensors_of
from photographs import BY_EYE, FLOWER, hopper, pair
from PIL import Image
from torch.nn import functional

from facemetric.data.images import decode
from facemetric.errors import WeightsError
from facemetric.faces import mtcnn
from facemetric.faces.detector import default_detector
from facemetric.faces.mtcnn import (
    Candidates,
    Mtcnn,
    cells_of,
    level_of,
    non_maximum,
    normalised,
    parts_of,
    sums_of,
)
from facemetric.faces.networks import TorchNetworks
from facemetric.faces.onnx_networks import OnnxNetworks
from facemetric.files import file_hash


def pictures() -> list[Image.Image]:
    """Of several sizes, with one face, two and none; two of one size, not side by side."""
    one = hopper().resize((256, 300))
    return [one, pair().resize((400, 234)), decode(FLOWER.read_bytes()).resize((320, 213)), one.rotate(10)]


def test_boxes_scores_and_landmarks_are_those_of_facenet_pytorch() -> None:
    peer = pytest.importorskip("facenet_pytorch").MTCNN(keep_all=True, min_face_size=mtcnn.MIN_FACE)
    counts = []
    for image, found in zip(pictures(), default_detector()(pictures()), strict=True):
        boxes, scores, landmarks = peer.detect(image, landmarks=True)
        counts.append(len(found))
        assert len(found) == (0 if boxes is None else len(boxes))
        for i, face in enumerate(found):
            np.testing.assert_allclose(face.box, np.asarray(boxes[i], float), atol=2e-3)
            np.testing.assert_allclose(face.landmarks, np.asarray(landmarks[i], float), atol=2e-3)
            assert face.score == pytest.approx(scores[i], abs=1e-5)
    assert counts[0] >= 1
    assert counts[1] >= 2


def test_a_batch_finds_what_each_picture_alone_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    together = default_detector()(pictures())
    alone = [default_detector()([picture])[0] for picture in pictures()]
    monkeypatch.setattr(mtcnn, "LEVELS_AT_ONCE", 1)
    monkeypatch.setattr(default_detector().networks, "together", (1, 1), raising=False)  # one after the other
    monkeypatch.setattr(mtcnn, "PIXELS_AT_ONCE", 1)
    for one, two, three in zip(together, alone, default_detector()(pictures()), strict=True):
        assert len(one) == len(two) == len(three)
        for faces in zip(one, two, three, strict=True):
            for other in faces[1:]:
                np.testing.assert_allclose(faces[0].landmarks, other.landmarks, atol=1e-3)
    assert default_detector()([]) == []


def test_levels_and_cells_are_means_over_boxes() -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 70), (31, 40))]
    sums = sums_of([pixels[0], pixels[1], pixels[0]])
    planes = [torch.from_numpy(one).permute(2, 0, 1)[None].float() for one in pixels]

    def means(plane: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
        return normalised(functional.interpolate(plane, size, mode="area").numpy())

    level = level_of(sums, np.array([0, 2]), (50, 70), (17, 29))
    np.testing.assert_allclose(level, means(planes[0], (17, 29)).repeat(2, 0), rtol=1.3e-6, atol=1e-5)
    boxes = np.array([[-5.0, 3, 20, 90], [10.9, 7.2, 15.1, 12], [500, 3, 510, 13]], np.float32)
    found = Candidates(boxes, np.ones(3, np.float32), np.array([1, 0, 0]), np.zeros((3, 4), np.float32))
    kept, cells = cells_of(sums, found, 24)
    assert kept.of.tolist() == [1, 0]  # the third lies beside its picture
    for cell, plane in zip(cells, (planes[1][..., 2:31, 0:20], planes[0][..., 6:12, 9:15]), strict=True):
        np.testing.assert_allclose(cell, means(plane, (24, 24))[0], rtol=1.3e-6, atol=1e-5)


def test_of_boxes_that_overlap_the_best_is_kept_in_each_picture() -> None:
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4], [20, 20, 30, 30], [0, 0, 10, 10]])
    scores, of = np.float32([0.8, 0.9, 0.7, 0.6, 0.5]), np.array([0, 0, 0, 0, 1])
    found = Candidates(boxes, scores, of, np.zeros((5, 4), np.float32))
    assert non_maximum(found, 0.5).tolist() == [1, 2, 3, 4]
    assert non_maximum(found, 0.5, of_smaller=True).tolist() == [1, 3, 4]  # the third lies within the second
    assert non_maximum(found.take(np.zeros(0, int)), 0.5).tolist() == []


def test_pictures_are_taken_in_parts_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtcnn, "PIXELS_AT_ONCE", 100)
    images = [Image.new("RGB", size) for size in ((5, 5), (5, 5), (10, 8), (30, 30), (2, 2))]
    assert [len(part) for part in parts_of(images)] == [2, 1, 1, 1]


def test_a_second_look_finds_the_landmarks_again_and_says_which_side_is_up() -> None:
    first = default_detector()([hopper()])[0][0]
    apart = np.random.default_rng(0).normal(0, 3, (5, 2))
    looks = default_detector().look_again([hopper()] * 2, [first.landmarks, first.landmarks + apart])
    assert np.linalg.norm(looks[0].landmarks - BY_EYE, axis=1).max() < 8
    assert np.linalg.norm(looks[0].landmarks - looks[1].landmarks, axis=1).mean() < 2
    assert looks[0].score > 0.99
    assert looks[0].upright
    middle = tuple(first.landmarks.mean(0).tolist())
    over = hopper().rotate(180, center=middle)
    assert not default_detector().look_again([over], [first.landmarks])[0].upright
    assert default_detector().look_again([over], [2 * np.array(middle) - first.landmarks])[0].upright


def test_onnx_runtime_and_torch_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Landmarks within 0.01 pixel (seen on 200 photographs of LFW: 0.00006, second look 0.002)."""
    by_onnx = Mtcnn(OnnxNetworks(mtcnn.weights_file()))
    monkeypatch.setattr(mtcnn, "can_run", lambda: False)
    by_torch = Mtcnn()
    assert isinstance(by_torch.networks, TorchNetworks)
    for one, other in zip(by_onnx(pictures()), by_torch(pictures()), strict=True):
        assert len(one) == len(other)
        for face, same in zip(one, other, strict=True):
            np.testing.assert_allclose(face.landmarks, same.landmarks, atol=0.01)
            np.testing.assert_allclose(face.box, same.box, atol=0.01)
            assert face.score == pytest.approx(same.score, abs=1e-5)
    first = by_onnx([hopper()])[0][0].landmarks
    looks = [found.look_again([hopper()], [first])[0] for found in (by_onnx, by_torch)]
    np.testing.assert_allclose(looks[0].landmarks, looks[1].landmarks, atol=0.01)
    assert looks[0].score == pytest.approx(looks[1].score, abs=1e-4)
    assert looks[0].upright


def test_the_graphs_name_the_numbers_of_the_shipped_file(tmp_path: Path) -> None:
    shipped = mtcnn.weights_file()
    tensors, sha256 = tensors_of(shipped), file_hash(shipped)
    for name in NETS:
        assert (
            make(name, tensors, sha256).SerializeToString() == shipped.with_name(f"{name}.onnx").read_bytes()
        )


def test_graphs_that_are_missing_or_of_other_weights(tmp_path: Path) -> None:
    shipped = mtcnn.weights_file()
    own = Path(shutil.copytree(shipped.parent, tmp_path / "mtcnn")) / shipped.name
    assert OnnxNetworks(own).sessions
    own.write_bytes(own.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"proposal.onnx was made for another model.safetensors; install"):
        OnnxNetworks(own)
    own.write_bytes(own.read_bytes()[:1000])
    with pytest.raises(WeightsError, match=r"proposal.onnx cannot be read \(.*\); install facemetric again"):
        OnnxNetworks(own)
    (own.parent / "proposal.onnx").unlink()
    with pytest.raises(WeightsError, match=r"proposal.onnx cannot be read"):
        OnnxNetworks(own)


def test_a_detector_goes_to_another_process_by_name() -> None:
    assert pickle.loads(pickle.dumps(default_detector())) is default_detector()


def test_weights_that_are_missing_or_damaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mtcnn, "PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(WeightsError, match=r"are not in .*b; install facemetric again"):
        Mtcnn()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match="cannot be read"):
        TorchNetworks(tmp_path / "b" / "model.safetensors")
