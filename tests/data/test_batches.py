"""Which images make a batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.data.batches import (
    IdentityBatches,
    ShuffledBatches,
    chunks,
    grouped,
    identity_rounds,
    places_within,
)
from facemetric.errors import ConfigError

LABELS = st.lists(st.integers(0, 12), min_size=1, max_size=80).map(np.array)


def lists(steps: object) -> list[list[int]]:
    return [rows.tolist() for rows in steps]  # type: ignore[attr-defined]


# ---- shuffled ----


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 3))
def test_shuffled_takes_each_row_once(count: int, batch_size: int, epoch: int) -> None:
    steps = ShuffledBatches(np.zeros(count), batch_size, 7, drop_last=False).epoch(epoch)
    assert sorted(row for rows in lists(steps) for row in rows) == list(range(count))
    assert [len(rows) for rows in lists(steps)[:-1]] == [batch_size] * (len(steps) - 1)
    if count >= batch_size:
        full = ShuffledBatches(np.zeros(count), batch_size, 7).epoch(epoch)
        assert lists(full) == lists(steps)[: count // batch_size]


def test_shuffled_by_seed_and_epoch() -> None:
    batches = ShuffledBatches(np.zeros(100), 10, 3)
    first = lists(batches.epoch(0))
    assert lists(ShuffledBatches(np.zeros(100), 10, 3).epoch(0)) == first
    assert lists(batches.epoch(1)) != first
    assert lists(ShuffledBatches(np.zeros(100), 10, 4).epoch(0)) != first
    assert lists(batches.epoch(0)) == first
    assert first != lists(chunks(100, 10))


@given(LABELS, st.integers(1, 6), st.integers(0, 3))
def test_a_cap_takes_so_many_of_each_identity(labels: np.ndarray, cap: int, epoch: int) -> None:
    batches = ShuffledBatches(labels, 3, 7, cap=cap, drop_last=False)
    rows = np.concatenate(lists(batches.epoch(epoch)))
    assert len(set(rows)) == len(rows) == batches.count
    for label in np.unique(labels):
        assert (labels[rows] == label).sum() == min(cap, (labels == label).sum())


def test_a_cap_leaves_rich_identities_spread_over_the_epoch() -> None:
    labels = np.repeat(np.arange(401), [400, *[1] * 400])
    rows = np.concatenate(lists(ShuffledBatches(labels, 10, 0, cap=100).epoch(0)))
    places = np.flatnonzero(labels[rows] == 0)
    assert len(places) == 100
    assert 220 < places.mean() < 280  # of 500; the first hundred of a permutation would lie at 125 on average


def test_a_cap_gives_all_images_their_turn() -> None:
    labels = np.repeat([4, 9], [30, 2])
    batches = ShuffledBatches(labels, 4, 0, cap=3)
    seen = [set(np.concatenate(lists(batches.epoch(epoch))).tolist()) for epoch in range(200)]
    assert set.union(*seen) == set(range(32))
    assert seen[0] != seen[1]


@given(LABELS)
def test_places_within(labels: np.ndarray) -> None:
    expected = [int((labels[:row] == label).sum()) for row, label in enumerate(labels)]
    assert places_within(labels).tolist() == expected


def test_chunks() -> None:
    assert lists(chunks(5, 2)) == [[0, 1], [2, 3], [4]]
    assert lists(chunks(0, 2)) == []
    steps = chunks(5, 2)
    assert steps[-1].tolist() == [4]
    for beyond in (3, -4):
        with pytest.raises(IndexError):
            steps[beyond]


# ---- P x K ----


@settings(max_examples=200)
@given(LABELS, st.integers(1, 6), st.integers(1, 5), st.integers(0, 2))
def test_identity_batches(labels: np.ndarray, p: int, k: int, epoch: int) -> None:
    counts = {label: int((labels == label).sum()) for label in labels.tolist()}
    if len(counts) < p:
        with pytest.raises(ConfigError, match=f"ask for {len(counts)} or less"):
            IdentityBatches(labels, p, k, 0)
        return
    steps = IdentityBatches(labels, p, k, 5).epoch(epoch)
    assert len(steps) == -(-len(labels) // (p * k))
    times = dict.fromkeys(counts, 0)
    for rows in lists(steps):
        assert len(set(rows)) == len(rows)
        found = labels[rows].tolist()
        assert len(set(found)) == p
        for label in set(found):
            assert found.count(label) == min(k, counts[label])
            times[label] += 1
    assert max(times.values()) - min(times.values()) <= 1


@settings(max_examples=200)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 1000))
def test_rounds(identities: int, per_batch: int, steps: int, seed: int) -> None:
    if identities < per_batch:
        return
    rounds = identity_rounds(np.random.default_rng(seed), identities, per_batch, steps)
    assert rounds.shape == (steps * per_batch,)
    for batch in rounds.reshape(steps, per_batch):
        assert len(set(batch.tolist())) == per_batch
    for first in range(0, len(rounds) - identities + 1, identities):
        assert sorted(rounds[first : first + identities]) == list(range(identities))


def test_an_identitys_images_come_evenly() -> None:
    labels = np.repeat([0, 1, 2], [7, 30, 11])
    steps = IdentityBatches(labels, 2, 4, 0, steps=60).epoch(0)
    times = np.bincount(np.concatenate(list(steps)), minlength=len(labels))
    for label in range(3):
        mine = times[labels == label]
        assert mine.max() - mine.min() <= 1
        assert mine.sum() == 160  # 60 steps x 2 identities / 3 x 4 images


def test_an_identitys_images_are_shuffled() -> None:
    batches = IdentityBatches(np.zeros(12), 1, 3, 0)
    orders = {tuple(row for rows in lists(batches.epoch(epoch)) for row in rows) for epoch in range(20)}
    assert len(orders) == 20
    assert {order[0] for order in orders} > {0, 1, 2}


def test_identity_batches_by_seed_and_epoch() -> None:
    labels = np.repeat(np.arange(20), 5)
    batches = IdentityBatches(labels, 4, 3, 1)
    first = lists(batches.epoch(0))
    assert (
        lists(IdentityBatches(labels * 10 + 3, 4, 3, 1).epoch(0)) == first
    )  # only sameness of labels counts
    assert lists(batches.epoch(1)) != first
    assert lists(IdentityBatches(labels, 4, 3, 2).epoch(0)) != first
    assert {label for rows in first for label in labels[rows].tolist()} == set(range(20))
    assert len(IdentityBatches(labels, 4, 3, 1, steps=70).epoch(0)) == 70


def test_the_first_batch_is_not_always_the_same_people() -> None:
    labels = np.repeat(np.arange(50), 4)
    firsts = [
        frozenset(labels[IdentityBatches(labels, 5, 2, seed).epoch(0)[0]].tolist()) for seed in range(20)
    ]
    assert len(set(firsts)) > 15


# ---- ranks ----


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("kind", ["shuffled", "identities", "chunks"])
def test_ranks_share_one_global_batch(world_size: int, kind: str) -> None:
    labels = np.repeat(np.arange(10), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])

    def steps(rank: int, world_size: int) -> list[list[int]]:
        if kind == "shuffled":
            made = ShuffledBatches(labels, 12, 0, drop_last=False, rank=rank, world_size=world_size).epoch(2)
        elif kind == "identities":
            made = IdentityBatches(labels, 4, 3, 0, rank=rank, world_size=world_size).epoch(2)
        else:
            made = chunks(55, 12, rank=rank, world_size=world_size)
        return lists(made)

    parts = [steps(rank, world_size) for rank in range(world_size)]
    joined = [[row for part in rows for row in part] for rows in zip(*parts, strict=True)]
    assert joined == steps(0, 1)
    for rows in zip(*parts, strict=True):
        sizes = [len(part) for part in rows]
        assert max(sizes) - min(sizes) <= 1


def test_faults() -> None:
    labels = np.repeat(np.arange(4), 3)
    with pytest.raises(ConfigError, match="12 images, a batch needs 13; lower --batch-size to 12"):
        ShuffledBatches(labels, 13, 0)
    with pytest.raises(ConfigError, match="at least 1"):
        ShuffledBatches(labels, 0, 0)
    with pytest.raises(ConfigError, match="7 images on 4 processes; each needs two: start at most 3"):
        ShuffledBatches(labels, 7, 0, world_size=4)
    with pytest.raises(ConfigError, match="4 identities, the batch needs 5; ask for 4 or less"):
        IdentityBatches(labels, 5, 2, 0)
    with pytest.raises(ConfigError, match="at least 1"):
        IdentityBatches(labels, 2, 0, 0)
    with pytest.raises(ConfigError, match="0 images"):
        ShuffledBatches(labels[:0], 1, 0, drop_last=False)


class Counted:
    """An array that counts what is taken from it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.taken = array, 0

    def __getitem__(self, key: object) -> np.ndarray:
        found = self.array[key]  # type: ignore[index]
        self.taken += np.size(found)
        return found

    def __len__(self) -> int:
        return len(self.array)


@pytest.mark.parametrize("identities", [1_000, 1_000_000])
def test_a_step_reads_as_much_of_a_large_index_as_of_a_small_one(identities: int) -> None:
    """What it takes in time: tools/bench_index.py."""
    steps = IdentityBatches(np.repeat(np.arange(identities, dtype=np.int32), 2), 64, 2, 0).epoch(0)
    parts = {name: Counted(getattr(steps, name)) for name in ("order", "rounds", "starts", "counts")}
    for name, part in parts.items():
        setattr(steps, name, part)
    for step in range(0, len(steps), max(1, len(steps) // 10)):
        for part in parts.values():
            part.taken = 0
        assert len(steps[step]) == 128
        assert {name: part.taken for name, part in parts.items()} == {
            "order": 128,
            "rounds": 64,
            "starts": 64,
            "counts": 64,
        }


def test_steps_travel_to_another_process() -> None:
    for steps in (IdentityBatches(np.arange(20) // 4, 3, 2, 0).epoch(0), chunks(9, 2)):
        assert lists(pickle.loads(pickle.dumps(steps))) == lists(steps)


def test_who_is_alike_comes_in_one_group() -> None:
    """Pairs of identities (0 1)(2 3)... are each other's nearest: each pair lies side by side, in shuffled order."""
    count = 40
    alike = np.stack([np.arange(count) ^ 1, (np.arange(count) + 2) % count], 1)
    drawn = grouped(np.random.default_rng(0), alike, 2)
    assert sorted(drawn.tolist()) == list(range(count))
    pairs = drawn.reshape(-1, 2)
    assert (pairs[:, 0] ^ 1 == pairs[:, 1]).all()
    assert pairs[:, 0].tolist() != sorted(pairs[:, 0].tolist())
    assert not np.array_equal(drawn, grouped(np.random.default_rng(1), alike, 2))


def test_a_group_takes_only_who_is_in_none() -> None:
    alike = np.array([[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]])  # all would have the first ones
    drawn = grouped(np.random.default_rng(3), alike, 3)
    assert sorted(drawn.tolist()) == list(range(6))


def test_batches_of_those_who_are_alike() -> None:
    labels = np.repeat(np.arange(12), 5)
    alike = np.stack([np.arange(12) ^ 1, np.arange(12) ^ 2], 1)
    sampler = IdentityBatches(labels, 4, 3, seed=5, steps=9)
    for step in sampler.epoch(2, alike, 2):
        who = labels[step].reshape(4, 3)
        assert (who == who[:, :1]).all()
        assert len(set(who[:, 0].tolist())) == 4
    first = [labels[step].reshape(4, 3)[:, 0] for step in sampler.epoch(2, alike, 2)][:3]  # one round
    assert all((who.reshape(2, 2)[:, 0] ^ 1 == who.reshape(2, 2)[:, 1]).all() for who in first)
    plain = [step.tolist() for step in sampler.epoch(2)]
    assert plain != [step.tolist() for step in sampler.epoch(2, alike, 2)]
    parts = [IdentityBatches(labels, 4, 3, seed=5, steps=9, rank=r, world_size=2) for r in range(2)]
    for whole, *shares in zip(
        sampler.epoch(1, alike, 2), *(p.epoch(1, alike, 2) for p in parts), strict=True
    ):
        assert np.array_equal(np.concatenate(shares), whole)
