"""The embedder: shapes, the unit sphere, folding, freezing, errors."""

from __future__ import annotations

import copy

import pytest
import torch

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.model.embedder import PIECE, build_backbone, build_embedder, in_pieces
from facemetric.model.freezing import batch_norms, freeze, training_mode, turn, widest

PRE = Preprocess(size=(32, 32))


@pytest.mark.parametrize("arch", ["lcnet_035", "resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [0, 24])
def test_any_backbone_gives_unit_vectors(arch: str, size: int) -> None:
    embedder = build_embedder(arch, preprocess=PRE, embedding_size=size, neck=True).eval()
    emb = embedder(torch.randn(3, 3, 32, 32))
    assert emb.shape == (3, size or embedder.num_features)
    torch.testing.assert_close(emb.norm(dim=1), torch.ones(3))


def test_folding_keeps_the_embedding() -> None:
    torch.manual_seed(0)
    embedder = build_embedder("lcnet_035", preprocess=PRE, embedding_size=16, neck=True)
    for _ in range(3):  # moves the running statistics of the neck
        embedder(torch.randn(8, 3, 32, 32))
    embedder.eval()
    images = torch.randn(4, 3, 32, 32)
    expected = embedder(images)
    folded = embedder.folded_projection()
    embedder.projection, embedder.neck = folded, torch.nn.Identity()
    torch.testing.assert_close(embedder(images), expected)


def test_turns_of_freezing() -> None:
    turns = ("backbone", "batchnorm", "none")
    assert [turn(turns, (2, 1), epoch) for epoch in range(5)] == [
        "backbone",
        "backbone",
        "batchnorm",
        "none",
        "none",
    ]
    assert turn(("none",), (), 7) == "none"
    assert widest(turns) == widest(("none", "backbone")) == "none"
    assert widest(("batchnorm", "backbone")) == "batchnorm"


def test_arguments_of_the_architecture() -> None:
    args = {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}
    embedder = build_embedder("resnet18", preprocess=PRE, arch_args=args)
    assert embedder.num_features == 32
    assert sum(p.numel() for p in embedder.parameters()) < 100_000
    assert embedder.model_args == args
    for wrong in ({"layerss": [1]}, {"layers": [1, 1]}, {"output_stride": 7}, {"num_classes": 3}):
        with pytest.raises(ConfigError, match="resnet18"):
            build_embedder("resnet18", preprocess=PRE, arch_args=wrong)


@pytest.mark.parametrize("how", ["backbone", "batchnorm", "none"])
def test_what_is_frozen_stays_the_same_bits(how: str) -> None:
    embedder = build_embedder("lcnet_035", preprocess=PRE, embedding_size=16)
    before = copy.deepcopy(embedder.state_dict())
    freeze(embedder, how)
    training_mode(embedder, how)
    optimizer = torch.optim.SGD([p for p in embedder.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        embedder(torch.randn(8, 3, 32, 32)).square()[:, 0].sum().backward()
        optimizer.step()
    changed = {name for name, value in embedder.state_dict().items() if not torch.equal(value, before[name])}
    norms = {id(module) for module in batch_norms(embedder.backbone)}
    of_norms = {
        f"{name}.{leaf}"
        for name, module in embedder.named_modules()
        if id(module) in norms
        for leaf, _ in [*module.named_parameters(), *module.named_buffers()]
    }
    outside = {name for name in changed if name.startswith("backbone.") and name not in of_norms}
    assert "projection.weight" in changed
    if how == "backbone":
        assert not {name for name in changed if name.startswith("backbone.")}
    elif how == "batchnorm":
        assert not outside
        assert any(name.endswith("running_mean") for name in changed)
    else:
        assert outside


def test_pieces_give_what_the_whole_gives() -> None:
    seen = []

    def work(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return embedder(images)

    embedder = build_embedder("lcnet_050", preprocess=Preprocess(size=(32, 32)), embedding_size=8).eval()
    images = torch.randn(2 * PIECE + 3, 3, 32, 32)
    found = in_pieces(work, images)
    assert seen == [PIECE, PIECE, 3]
    assert not found.requires_grad
    assert torch.allclose(found, embedder(images), atol=1e-5)
    assert in_pieces(work, images[:0]).shape == (0, 8)


def test_a_device_out_of_memory_takes_fewer_at_a_time() -> None:
    """Half as many, until they fit; of one that does not, what to do is told."""
    most, seen = 5, []

    def work(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images.mean((1, 2, 3))

    images = torch.randn(11, 3, 8, 6)
    torch.testing.assert_close(in_pieces(work, images), images.mean((1, 2, 3)))
    assert seen == [11, 5, 5, 1]
    most = 0
    with pytest.raises(
        ConfigError, match="one picture of 6 x 8 pixels; free some of it, or set --device cpu"
    ):
        in_pieces(work, images)


def test_a_misspelt_architecture_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'mobilenetv4_conv_smal'.*did you mean 'mobilenetv4_conv_small"):
        build_embedder("mobilenetv4_conv_smal", preprocess=PRE)


def test_an_image_too_small_for_the_backbone_is_said() -> None:
    with pytest.raises(ConfigError, match="--image-size"):
        build_embedder("efficientformerv2_s0", preprocess=Preprocess(size=(33, 33)))


@pytest.mark.parametrize("error", [FileNotFoundError("no network"), RuntimeError("no weights")])
def test_weights_of_timm_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("timm.create_model", failing)
    with pytest.raises(
        ConfigError, match=r"with its weights: no .*; go without --pretrained where there is no"
    ):
        build_backbone("resnet18", (64, 64), pretrained=True)
