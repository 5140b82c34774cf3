"""A compiled backbone, and one that computes activations again: the same weights, names and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.model import faster
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.model.faster import check_compiler, checkpoint_activations, compile_backbone
from facemetric.training.step.gradients import Gradients
from facemetric.training.step.optim import Amp


def embedder_of(arch: str = "test_resnet") -> Embedder:
    torch.manual_seed(0)
    return build_embedder(
        arch, preprocess=Preprocess(size=(32, 32)), embedding_size=8, drop_path=0.2 * (arch != "test_resnet")
    )


IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def a_step(embedder: Embedder, *, recomputed: bool = False) -> dict[str, torch.Tensor]:
    """Gradients and running statistics after one step in training mode."""
    embedder.train()
    torch.manual_seed(3)
    backward = Gradients(embedder, Amp(torch.device("cpu"), "off"), recomputed=recomputed)
    backward.follow()
    backward(embedder(IMAGES)[:, 0].square().sum())
    grads = {name: value.grad for name, value in embedder.named_parameters() if value.grad is not None}
    return grads | dict(embedder.named_buffers())


def test_a_compiled_backbone_has_the_same_names_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(faster, "BACKEND", backend)
    plain, compiled = embedder_of(), embedder_of()
    compile_backbone(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    expected, found = a_step(plain), a_step(compiled)
    assert len(graphs) == 1
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(compiled)  # as the moving average takes one
    with torch.no_grad():
        next(twin.backbone.parameters()).zero_()
        for one in (twin, compiled, plain):
            one.eval()
        assert not torch.equal(twin(IMAGES), compiled(IMAGES))
        assert torch.equal(compiled(IMAGES), compiled.requires_grad_(False)(IMAGES))
    assert len(graphs) == 1  # evaluation takes the backbone as it is
    compiled.train()
    compiled(IMAGES)
    assert len(graphs) <= 2  # another mode of gradients, which an older torch takes for the same


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise FileNotFoundError("No working C++ compiler found in ['g++']")

    monkeypatch.setattr(faster, "BACKEND", backend)
    with pytest.raises(
        ConfigError, match=r"--compile does not work here \(.*\); .* a C\+\+ compiler such as g"
    ):
        check_compiler(torch.device("cpu"))
    monkeypatch.setattr(faster, "BACKEND", "eager")
    check_compiler(torch.device("cpu"))


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit"])
def test_activations_computed_again_give_the_same_gradient(arch: str) -> None:
    """And running statistics that have seen the batch once; stochastic depth draws the same."""
    plain, again = embedder_of(arch), embedder_of(arch)
    checkpoint_activations(again)
    expected, found = a_step(plain), a_step(again, recomputed=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    norms = [value for name, value in found.items() if name.endswith("num_batches_tracked")]
    assert all(int(count) == 1 for count in norms)
    assert bool(norms) == (arch == "test_resnet")


def test_less_is_kept_for_backward() -> None:
    kept = []
    for change in (lambda embedder: None, checkpoint_activations):
        embedder = embedder_of()
        change(embedder)  # type: ignore[no-untyped-call]
        sizes: list[int] = []

        def pack(value: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            embedder.train()(IMAGES)
        kept.append(sum(sizes))
    assert kept[1] < 0.7 * kept[0]


def test_a_backbone_that_cannot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(enable: bool = True) -> None:
        assert not enable, "gradient checkpointing not supported"

    embedder = embedder_of()
    monkeypatch.setattr(embedder.backbone, "set_grad_checkpointing", refuse, raising=False)
    with pytest.raises(
        ConfigError, match="timm's test_resnet cannot compute its activations again; use --micro"
    ):
        checkpoint_activations(embedder)
