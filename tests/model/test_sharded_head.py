"""A head that is shared out over 1, 2 and 3 processes gives the loss and the gradients of the whole head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_processes
from torch import Tensor
from torch.nn import functional

from facemetric import distributed
from facemetric.errors import ConfigError
from facemetric.model.heads import HEADS, MarginHead, make_head
from facemetric.model.sharded_head import ShardedHead, check_by_columns, first_weights

D, C = 6, 11  # 11 identities on 2 and 3 processes: 5 and 6; 3, 4 and 4
SIZES = {1: [20], 2: [13, 7], 3: [9, 0, 11]}  # images of each process


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    emb = torch.randn(20, D, generator=generator, dtype=torch.float64) * 20
    labels = torch.randint(0, C, (20,), generator=generator)
    labels[0], labels[1] = 0, C - 1
    return emb, labels


def made(kind: str, sample: float = 1.0) -> ShardedHead:
    head = ShardedHead(kind, D, C, scale=16.0, margin=0.3, sample=sample, seed=4)
    with torch.no_grad():
        for parameter in head.columns.parameters():
            parameter.mul_(10)
            if parameter.dim() == 1:  # a bias of one's own for each identity
                parameter += torch.arange(head.shard.first, head.shard.stop) / C
    return head.double().train()


def own_images(world: int) -> slice:
    first = sum(SIZES[world][: distributed.rank()])
    return slice(first, first + SIZES[world][distributed.rank()])


def steps_of(head: ShardedHead, smoothing: float, own: slice) -> dict[str, Any]:
    """Two steps: the sums of all processes, this process's gradients and buffers."""
    emb, labels = batch()
    found: dict[str, Any] = {"losses": [], "right": [], "drawn": []}
    for _ in range(2):
        emb_BD = emb[own].clone().requires_grad_()
        head.zero_grad()
        loss = head.cross_entropy(emb_BD, labels[own], 0.7, smoothing)
        (loss.loss / 20).backward()
        found["losses"].append(float(distributed.total(loss.loss)))
        found["right"].append(float(distributed.total(loss.right)))
        found["emb"] = emb_BD.grad.clone()
        found["drawn"].append([each.rows + head.shard.first for each in head.drawn[:1]])
        parts = [each.part for each in head.drawn] or list(head.columns.parameters())
        found["grads"] = [part.grad.clone() for part in parts]
    found["buffers"] = dict(head.columns.named_buffers())
    found["names"] = head.identify(emb[own])
    return found


def in_worlds(world: int, work: Any, folder: Path) -> list[dict[str, Any]]:
    """What `work()` returns in each of so many processes."""

    def process(rank: int) -> None:
        distributed.start("cpu")
        torch.save(work(), folder / f"{world}-{rank}.pt")

    ended = in_processes(world, process, folder / f"said-{world}")
    assert ended == [0] * world, (folder / f"said-{world}").read_text()
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def whole(kind: str, smoothing: float) -> dict[str, Any]:
    """The same two steps by the head of HEADS and torch's cross-entropy."""
    head = make_head(kind, D, C, scale=16.0, margin=0.3).double().train()
    source = made(kind)
    head.load_state_dict(source.columns.state_dict())
    emb, labels = batch()
    found: dict[str, Any] = {"losses": [], "right": []}
    for _ in range(2):
        emb_BD = emb.clone().requires_grad_()
        head.zero_grad()
        logits = head(emb_BD)
        harder = head.with_margin(logits, labels, 0.7, emb_BD=emb_BD)
        loss = functional.cross_entropy(harder, labels, label_smoothing=smoothing, reduction="sum")
        (loss / 20).backward()
        found["losses"].append(float(loss.detach()))
        found["right"].append(float((logits.argmax(1) == labels).sum()))
        found["emb"] = emb_BD.grad
        found["grads"] = [parameter.grad for parameter in head.parameters()]
    found["buffers"] = dict(head.named_buffers())
    found["names"] = head(emb).argmax(1)
    return found


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_head_gives_what_the_whole_head_gives(world: int, tmp_path: Path) -> None:
    cases = [(kind, smoothing) for kind in HEADS for smoothing in (0.0, 0.1)]

    def work() -> dict[str, Any]:
        own = own_images(world)
        return {f"{kind} {smoothing}": steps_of(made(kind), smoothing, own) for kind, smoothing in cases}

    found = in_worlds(world, work, tmp_path)
    for kind, smoothing in cases:
        expected, parts = whole(kind, smoothing), [each[f"{kind} {smoothing}"] for each in found]
        assert 0 < expected["right"][0] < 20
        for part in parts:
            assert part["losses"] == pytest.approx(expected["losses"], rel=1e-12), (kind, smoothing)
            assert part["right"] == expected["right"]
            for name, value in expected["buffers"].items():
                torch.testing.assert_close(part["buffers"][name], value, rtol=1e-12, atol=1e-12)
        exact = {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(torch.cat([part["emb"] for part in parts]), expected["emb"], **exact)
        assert torch.equal(torch.cat([part["names"] for part in parts]), expected["names"])
        for number, grad in enumerate(expected["grads"]):
            assert grad.abs().max() > 1e-4
            together = torch.cat([part["grads"][number] for part in parts])
            torch.testing.assert_close(together, grad, **exact)


def test_a_sample_is_the_same_on_any_number_of_processes(tmp_path: Path) -> None:
    kinds = ("softmax", "curricular", "subcentre-arcface")

    def work() -> dict[str, Any]:
        own = own_images(distributed.world_size())
        return {kind: steps_of(made(kind, sample=0.9), 0.0, own) for kind in kinds}

    one, *others = (in_worlds(world, work, tmp_path) for world in (1, 2, 3))
    for kind in kinds:
        alone = one[0][kind]
        each = 3 if kind == "subcentre-arcface" else 1
        rows = [drawn[0] for drawn in alone["drawn"]]
        assert [len(r) for r in rows] == [10 * each] * 2  # nine tenths of 11
        assert not torch.equal(*rows)  # others in the next step
        labels = set(batch()[1].tolist())
        assert len(labels) < 10
        for drawn in rows:
            assert labels <= {int(row) // each for row in drawn}
        for found in others:
            parts = [part[kind] for part in found]
            assert parts[0]["losses"] == pytest.approx(alone["losses"], rel=1e-12)
            torch.testing.assert_close(torch.cat([part["emb"] for part in parts]), alone["emb"])
            for number, grad in enumerate(alone["grads"]):
                torch.testing.assert_close(torch.cat([part["grads"][number] for part in parts]), grad)


def test_a_sample_sees_its_columns_alone() -> None:
    """The loss is that of a whole head of the drawn identities."""
    head = made("cosface", sample=0.9)
    emb, labels = batch()
    loss = head.cross_entropy(emb, labels).loss
    drawn = head.drawn[0]
    small = make_head("cosface", D, len(drawn.rows), scale=16.0, margin=0.3).double()
    small.load_state_dict({"weight": drawn.whole[drawn.rows]})
    column = torch.searchsorted(drawn.rows, labels)
    expected = functional.cross_entropy(small.with_margin(small(emb), column), column, reduction="sum")
    torch.testing.assert_close(loss, expected)


def test_a_batch_of_more_identities_than_the_sample_keeps_all_of_them() -> None:
    head = made("arcface", sample=0.1)
    emb, labels = batch()
    head.cross_entropy(emb, labels)
    assert head.drawn[0].rows.tolist() == sorted(set(labels.tolist()))
    head.eval()
    head.cross_entropy(emb, labels)
    assert not head.drawn  # nobody is drawn where nothing is learned


def test_first_weights_do_not_depend_on_who_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from facemetric.model import sharded_head

    monkeypatch.setattr(sharded_head, "BLOCK", 4)
    weights = []
    for parts in (1, 2, 3):
        rows = []
        for part in range(parts):
            shard = distributed.Shard(11 * part // parts, 11 * (part + 1) // parts, 11)
            parameter = torch.nn.Parameter(torch.empty(shard.size * 2, D), requires_grad=False)
            first_weights(parameter, shard, 5)
            rows.append(parameter)
        weights.append(torch.cat(rows))
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    assert weights[0].std() == pytest.approx(0.01, rel=0.2)
    assert len(np.unique(weights[0].numpy())) == weights[0].numel()


def test_centres_to_start_from_go_to_their_owners() -> None:
    head = made("arcface")
    centres = torch.randn(C, D)
    assert head.has_centres
    head.start_from(centres)
    torch.testing.assert_close(head.columns.weight, centres.double())
    assert not made("softmax").has_centres


@pytest.mark.parametrize("says", [{}, {"by_columns": False}])
def test_a_head_that_needs_every_logit_is_refused(
    says: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(MarginHead):
        """Of somebody else."""

        vars().update(says)

        def with_margin(self, *arguments: Any, **options: Any) -> Tensor:
            raise AssertionError

    monkeypatch.setitem(HEADS, "own", Own)
    with pytest.raises(
        ConfigError, match=r"--head=own sees all logits .* leave out --head-shards, .*\(Own does"
    ):
        check_by_columns("own")
    for kind in set(HEADS) - {"own"}:
        check_by_columns(kind)


def test_fewer_identities_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(ConfigError, match="3 identities cannot be shared out over 4 processes"):
        ShardedHead("arcface", D, 3, scale=1.0, margin=0.1)
