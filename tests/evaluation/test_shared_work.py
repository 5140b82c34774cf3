"""Work that is shared out over 2 and 3 processes gives the very numbers of one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_processes
from untrained_weights import untrained

from facemetric import distributed
from facemetric.data.index import read_index
from facemetric.data.transforms import Augment
from facemetric.evaluation import nearest as nearest_room
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.identification import identify
from facemetric.evaluation.intervals import all_pairs as intervals_room
from facemetric.evaluation.intervals.all_pairs import all_pairs_intervals, count_by_person
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.ranks import own_ranks
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.mining import tiles
from facemetric.model.weights.save_load import load_embedder
from facemetric.training.tasks.feature_cache import cached_features

__all__ = ["untrained"]  # a fixture
N, D = 1700, 12


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, some of them equal, of people with 1 to 9 images."""
    rng = np.random.default_rng(5)
    label_N = np.minimum(rng.integers(300, size=N), rng.integers(300, size=N))
    emb_ND = (rng.normal(size=(300, D))[label_N] + 1.2 * rng.normal(size=(N, D))).astype(np.float32)
    emb_ND[1::50] = emb_ND[::50]
    return emb_ND, label_N


def mark(*values: Any) -> str:
    """A hash of the bytes of arrays, and of the text of other values."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode())
    return digest.hexdigest()


def found_of_pairs() -> dict[str, str]:
    """What is measured of pairs and neighbours, with so little kept that every process must let go of some."""
    intervals_room.LISTED = 300
    nearest_room.BUDGET_MIB = 0.3  # several groups of queries
    tiles.CPU_BUDGET_MIB = 0.3  # the same where tiles are a device's
    at = torch.device("cpu")
    emb_ND, label_N = drawn()
    pairs = verify_all_pairs(emb_ND, label_N, keep=2000)
    bounds = all_pairs_intervals(emb_ND, label_N, pairs, draws=100)
    near = nearest(emb_ND, emb_ND, 3)
    itself = leave_one_out(emb_ND, label_N)
    gallery = np.unique(label_N, return_index=True)[1][::2]
    probes = np.setdiff1d(np.arange(N), gallery)
    who = identify(emb_ND[gallery], label_N[gallery], emb_ND[probes], label_N[probes])
    hardest = pairs.hardest
    assert hardest is not None
    counts = count_by_person(emb_ND, label_N, np.arange(-16, 17) / 16, device=at)
    near_there = nearest(emb_ND, emb_ND, 3, device=at)
    ranks_there = own_ranks(emb_ND[gallery], label_N[gallery], emb_ND[probes], label_N[probes], device=at)
    return {
        "pairs": mark(pairs.to_dict(), pairs.exact_from, pairs.roc.far, pairs.roc.tar),
        "hardest": mark(*hardest.genuine, *hardest.impostor),
        "intervals": mark({name: list(interval) for name, interval in bounds.figures.items()}),
        "nearest": mark(near.rows, near.score),
        "retrieval": mark(itself.to_dict(), itself.each.nearest, itself.each.score),
        "identification": mark(who.to_dict(), who.rank, who.mate),
        "on a device": mark(*near_there, *ranks_there, *counts),
    }


def in_worlds(world: int, work: Any, folder: Path) -> list[Any]:
    """What `work()` returns in each of so many processes that share their work."""

    def process(rank: int) -> None:
        distributed.start("cpu")
        assert distributed.workers() == 1
        with distributed.work_shared():
            assert distributed.workers() == world
            torch.save(work(), folder / f"{world}-{rank}.pt")

    ended = in_processes(world, process, folder / f"said-{world}")
    assert ended == [0] * world, (folder / f"said-{world}").read_text()
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


def test_pairs_neighbours_and_identification(tmp_path: Path) -> None:
    (alone,), two, three = (in_worlds(world, found_of_pairs, tmp_path) for world in (1, 2, 3))
    assert two == [alone] * 2
    assert three == [alone] * 3


def test_images_are_embedded_once(untrained: Path, faces: Path, tmp_path: Path) -> None:
    """Each process embeds some of the batches, and caches some of the features; a bad image is told once."""
    index = read_index([str(faces)])

    def work() -> dict[str, Any]:
        embedder = load_embedder(untrained)
        seen: list[int] = []
        real = type(embedder).embed_pixels

        def counted(self: Any, pixels: np.ndarray, **options: Any) -> np.ndarray:
            seen.append(len(pixels))
            return real(self, pixels, **options)

        type(embedder).embed_pixels = counted  # type: ignore[method-assign]
        table = embed_index(embedder, index, batch_size=8).table
        cache = tmp_path / f"cache {distributed.world_size()}"
        kept = cached_features(embedder, index, cache, views=2, augment=Augment(), seed=3)
        again = cached_features(embedder, index, cache, views=2, augment=Augment(), seed=3)
        assert again.reused
        assert not kept.reused
        return {
            "table": mark(table.embeddings, table.paths.tolist()),
            "features": mark(np.asarray(kept.values)),
            "seen": sum(seen),
        }

    found = {world: in_worlds(world, work, tmp_path) for world in (1, 2, 3)}
    for name in ("table", "features"):
        assert len({each[name] for parts in found.values() for each in parts}) == 1
    assert found[1][0]["seen"] == len(index)
    for world in (2, 3):
        seen = [each["seen"] for each in found[world]]
        assert sum(seen) == len(index)
        assert min(seen) > 0


def test_nothing_is_shared_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever scores in one process alone does not wait for the others."""
    monkeypatch.setattr(distributed, "together", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert distributed.workers() == 1
    assert distributed.own_share([1, 2, 3]) == [1, 2, 3]
    emb_ND, label_N = drawn()
    verify_all_pairs(emb_ND[:40], label_N[:40])  # would ask a group of processes that is not there
