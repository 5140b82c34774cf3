"""dlib's file to ONNX: a file of its format with other numbers in it, against the network written out plainly."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import dlib_to_onnx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from facemetric.evaluation.table import EmbeddingTable, unit_rows
from facemetric.model.onnx.embedder import OnnxEmbedder

WIDTHS = [32, 32, 32, 64, 64, 64, 64, 128, 128, 128, 256, 256, 256, 256]


def number(value: int) -> bytes:
    """A whole number as dlib writes it."""
    length = max(1, (value.bit_length() + 7) // 8)
    return bytes([length]) + value.to_bytes(length, "little")


def tensor(values: np.ndarray) -> bytes:
    sizes = [*values.shape, 1, 1, 1][:4]
    return number(2) + b"".join(map(number, sizes)) + values.astype("<f4").tobytes()


def layers() -> list[np.ndarray]:
    """The tensors of a network with random numbers, in the order of the file."""
    rng = np.random.default_rng(5)
    made, into = [], 3
    for kernel, width in ((7, 32), *((3, width) for width in WIDTHS)):
        for inner in range(1 if kernel == 7 else 2):
            seen = into if inner == 0 else width
            scale = (seen * kernel**2) ** -0.5
            kernels = rng.normal(scale=scale, size=width * seen * kernel**2)
            made.append(np.concatenate([kernels, 0.1 * rng.normal(size=width)]))
            made.append(np.concatenate([1 + 0.2 * rng.normal(size=width), 0.1 * rng.normal(size=width)]))
        into = width
    return [*made, rng.normal(size=(256, 128)) / 16]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tensors with texts of layers between them, as in dlib's file."""
    path = tmp_path_factory.mktemp("dlib") / "network.dat"
    parts = [b"\x01\x01\x01\x0dloss_metric_2", b"\x01\x02\x01\x02\x01\x01"]
    parts += [text for values in layers() for text in (number(5) + b"con_4" + number(1), tensor(values))]
    path.write_bytes(b"".join(parts) + b"\x01\x02\x00")
    return path


def plainly(crops: Tensor) -> Tensor:
    """The network on crops (B, 3, 112, 112), 0..255."""
    tensors = iter(torch.from_numpy(values.astype(np.float32)) for values in layers())

    def conv(seen: Tensor, width: int, kernel: int, stride: int) -> Tensor:
        flat, affine = next(tensors), next(tensors)
        kernels = flat[:-width].view(width, -1, kernel, kernel)
        out = functional.conv2d(
            seen, kernels, flat[-width:], stride, padding=kernel // 2 if stride == 1 else 0
        )
        return out * affine[:width, None, None] + affine[width:, None, None]

    def as_large(seen: Tensor, like: Tensor) -> Tensor:
        more = [max(0, b - a) for a, b in zip(seen.shape[1:], like.shape[1:], strict=True)]
        return functional.pad(seen, (0, more[2], 0, more[1], 0, more[0]))

    # Columns 7 to 106 and rows 22 to 121 of the crop, 99 pixels, become 150.
    y, x = torch.meshgrid(*2 * [(torch.arange(150) + 0.5) * 99 / 150], indexing="ij")
    places = torch.stack([(x + 7) / 56 - 1, (y + 22) / 56 - 1], -1).expand(len(crops), -1, -1, -1)
    chips = functional.grid_sample(crops, places, "bicubic", "border", align_corners=False).clamp(0, 255)
    seen = (chips - torch.tensor([122.782, 117.001, 104.298])[:, None, None]) / 256
    seen = functional.max_pool2d(functional.relu(conv(seen, 32, 7, 2)), 3, 2)
    for number, width in enumerate(WIDTHS):
        halve = number in (3, 7, 10, 13)
        inner = conv(functional.relu(conv(seen, width, 3, 2 if halve else 1)), width, 3, 1)
        beside = functional.avg_pool2d(seen, 2, 2) if halve else seen
        seen = functional.relu(as_large(inner, beside) + as_large(beside, inner))
    return seen.mean((2, 3)) @ next(tensors)


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["dlib_to_onnx", *map(str, arguments)])
    dlib_to_onnx.main()


def test_the_file_is_the_network(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(monkeypatch, file, "--out", tmp_path / "dlib.onnx")
    model = OnnxEmbedder(tmp_path / "dlib.onnx", threads=1)
    assert model.notes == ()  # nothing is guessed
    pixels = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    found = model.embed([Image.fromarray(one) for one in pixels])
    expected = functional.normalize(plainly(torch.from_numpy(pixels).permute(0, 3, 1, 2).float()))
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda data: data[: len(data) // 2], "the file has no more"),
        (lambda data: b"not dlib's", "the file has no more"),
        (
            lambda data: data.replace(number(64) + b"\x01\x01" * 3, number(62) + b"\x01\x01" * 3),
            "the file has one of shape",
        ),
    ],
)
def test_another_file_is_refused(
    spoil: object,
    why: str,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert callable(spoil)
    (tmp_path / "bad.dat").write_bytes(spoil(file.read_bytes()))
    with pytest.raises(SystemExit):
        convert(monkeypatch, tmp_path / "bad.dat", "--out", tmp_path / "dlib.onnx")
    assert why in capsys.readouterr().err
    assert not (tmp_path / "dlib.onnx").exists()


def test_nothing_is_overwritten(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dlib.toml").write_text("mine")
    with pytest.raises(SystemExit):
        convert(monkeypatch, file, "--out", tmp_path / "dlib.onnx")
    assert "dlib.toml is there already" in capsys.readouterr().err
    assert (tmp_path / "dlib.toml").read_text() == "mine"
    assert not (tmp_path / "dlib.onnx").exists()


def test_it_is_the_teacher_of_the_tables(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables' embeddings come from chips of their own, and are the mean with the mirror image."""
    file = os.environ.get("FACEMETRIC_TEST_DLIB", "")
    if not file:
        pytest.skip("FACEMETRIC_TEST_DLIB does not name dlib_face_recognition_resnet_model_v1.dat")
    table = EmbeddingTable.load(real_data / "teacher" / "celeba.npz")
    rows = np.random.default_rng(0).choice(len(table), 64, replace=False)
    convert(monkeypatch, file, "--out", tmp_path / "dlib.onnx")
    with tarfile.open(real_data / "celeba112.tar") as tar:
        crops = [Image.open(tar.extractfile(table.paths[row])).convert("RGB") for row in rows]  # type: ignore[arg-type]
    found = OnnxEmbedder(tmp_path / "dlib.onnx").embed(crops, flip=True)
    assert (found * unit_rows(table.embeddings[rows])).sum(1).mean() > 0.999


def test_iterating_ends_at_a_cut_number() -> None:
    found: Iterator[np.ndarray] = dlib_to_onnx.read_tensors(b"\x01\x02\x04\xff")
    assert list(found) == []
