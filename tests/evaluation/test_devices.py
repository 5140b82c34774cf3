"""Tiles that are made and searched on a device give what the threads of the CPU give, to the bit: on exact products,
with ties, copies and many small tiles. Where there is a GPU, tools/check_gpu.sh shows it to these tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from synthetic_people import exact_people

from facemetric.evaluation import nearest as nearest_room
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.calibration import cohort_statistics
from facemetric.evaluation.identification import identify
from facemetric.evaluation.intervals import all_pairs as intervals_room
from facemetric.evaluation.intervals.all_pairs import (
    all_pairs_differences,
    all_pairs_intervals,
    count_by_person,
)
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.ranks import own_ranks
from facemetric.evaluation.retrieval import gallery_probe, leave_one_out, same_images
from facemetric.evaluation.slices.measure import slice_all_pairs
from facemetric.mining import tiles

DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.param


@pytest.fixture(params=[None, 0.02, 0.1])
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of a walk: the usual one, and so little that there are many tiles."""
    if request.param is not None:
        monkeypatch.setattr(tiles, "CPU_BUDGET_MIB", request.param)
        monkeypatch.setattr(tiles, "CUDA_BUDGET_MIB", request.param)


def same(one: Any, other: Any) -> None:
    """Records and arrays are equal, to the bit."""
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        same(list(one.values()), list(other.values()))
    else:
        assert one == other


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("k", [1, 5, 60, 299, 300])
def test_nearest(device: torch.device, k: int) -> None:
    gallery, query = exact_people(300, 40, 1)[0], exact_people(90, 40, 1)[0]
    found = nearest(query, gallery, k, device=device)
    usual = nearest(query, gallery, k)
    same(found, usual)
    if k == 60:
        assert (np.diff(usual.score, axis=1) == 0).mean() > 0.5  # there are ties


@pytest.mark.usefixtures("budget")
def test_nearest_of_equal_rows(device: torch.device) -> None:
    rows = np.repeat(exact_people(2, 2)[0][:1], 500, axis=0)
    assert (nearest(rows[:3], rows, 40, device=device).rows == np.arange(40)).all()


@pytest.mark.parametrize("k", [1, 3, 20, 200])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 100, 700, 1333])
def test_any_scores_among_any_keys(device: torch.device, columns: int, k: int) -> None:
    """A tile is put among the keys of the rows before, as by sorting all keys."""
    rng = np.random.default_rng(columns)
    before, score = (
        rng.normal(size=(9, k)).astype(np.float32),
        rng.normal(size=(9, columns)).astype(np.float32),
    )
    score[4:, ::3] = np.round(score[4:, ::3])  # zeros of both signs, and ties
    score[8] = -np.abs(score[8])
    keys = np.sort(nearest_room._keys(before, rng.permutation(50_000)[: 9 * k].reshape(9, k)), axis=1)
    keys[2, k // 2 :] = nearest_room.NOBODY
    fresh = nearest_room._keys(score, np.arange(columns) + 50_000)
    wanted = np.sort(np.concatenate([keys, fresh], 1), axis=1)[:, :k]
    found = nearest_room._merged_on_device(
        torch.from_numpy(keys).to(device), torch.from_numpy(score).to(device), 50_000
    )
    np.testing.assert_array_equal(found.cpu().numpy(), wanted)


@pytest.mark.parametrize(("gallery", "k"), [(10, 1), (100, 100), (5000, 5), (5000, 3000), (200_000, 40)])
def test_what_a_tile_needs_fits_in_the_budget(gallery: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BUDGET_MIB", 1.0)
    height, width = nearest_room._shape_on_device(10_000, gallery, k, torch.device("cpu"))
    pool = k * (1 + nearest_room._group(width, k)) + width // nearest_room._group(width, k)
    assert 4 * height * width + 32 * height * pool <= 2**20
    assert height == 10_000 or 2 * height * (4 * width + 32 * pool) > 2**17  # and is used


@pytest.mark.usefixtures("budget")
def test_retrieval(device: torch.device) -> None:
    emb, label = exact_people(600, 90, 2)
    for found, usual in (
        (leave_one_out(emb, label, device=at) for at in (device, None)),
        (gallery_probe(emb[:200], label[:200], emb[200:], label[200:], device=at) for at in (device, None)),
    ):
        assert found.to_dict() == usual.to_dict()
        same(list(found.each), list(usual.each))
    same(*(same_images(emb[:300], emb[200:], device=at) for at in (device, None)))
    same(*(cohort_statistics(emb[:300], emb[300:], 50, device=at) for at in (device, None)))


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("people", [60, 400])
def test_identification(device: torch.device, people: int) -> None:
    """People with many images and with one, in the gallery and not."""
    emb, label = exact_people(900, people, 3)
    gallery = np.flatnonzero((np.arange(900) < 500) & (label < people * 3 // 4))
    if people == 400:
        gallery = gallery[np.unique(label[gallery], return_index=True)[1]]
    probe = np.arange(500, 900)
    arguments = emb[gallery], label[gallery], emb[probe], label[probe]
    found, usual = (identify(*arguments, fpirs=(0.1,), device=at) for at in (device, None))
    assert found.to_dict() == usual.to_dict()
    for name in ("best", "score", "rank", "mate"):
        same(getattr(found, name), getattr(usual, name))
    same(*(own_ranks(*arguments, device=at) for at in (device, None)))
    assert len(np.unique(usual.rank)) > 20


@pytest.mark.parametrize("listed", [200, 1 << 20])
@pytest.mark.parametrize("budget_mib", [None, 0.05])
def test_counts_of_people(
    device: torch.device, budget_mib: float | None, listed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals_room, "LISTED", listed)
    emb, label = exact_people(800, 120, 4)
    for threshold in ([-1.0, 0.123, 0.25, 1.0], np.arange(-16, 17) / 16, np.arange(-40, 41) / 64):
        options = {"threshold": np.array(threshold), "budget_mib": budget_mib}
        found, usual = (count_by_person(emb, label, **options, device=at) for at in (device, None))
        same(found, usual)
    assert usual.genuine.any()


def test_intervals_and_groups_of_all_pairs(device: torch.device) -> None:
    emb, label = exact_people(900, 150, 5)
    other = exact_people(900, 150, 6)[0]
    verified = verify_all_pairs(emb, label), verify_all_pairs(other, label)
    group = {"camera": np.array(["one", "other"])[np.arange(900) % 2]}
    points = verified[0].points
    for work in (
        lambda at: tuple(all_pairs_intervals(emb, label, verified[0], draws=100, device=at)),
        lambda at: all_pairs_differences((emb, other), label, verified, draws=100, device=at),
        lambda at: slice_all_pairs(emb, label, points, group, draws=100, device=at),
    ):
        same(work(device), work(None))


@pytest.mark.parametrize("keep", [100, 1 << 20])
@pytest.mark.parametrize("people", [4, 300, "alike"])
def test_all_pairs(device: torch.device, people: int | str, keep: int) -> None:
    """Tiles of one kind, of both and on the diagonal; where all are alike, every pair is as hard as the hardest."""
    emb, label = exact_people(700, 300 if people == "alike" else int(people), 7)
    if people == "alike":
        emb[:] = emb[0]
    found, usual = (
        verify_all_pairs(emb, label, keep=keep, budget_mib=0.1, device=at) for at in (device, None)
    )
    assert found.to_dict() == usual.to_dict()
    assert found.exact_from == usual.exact_from
    same((*found.roc, *found.hardest, *found.histogram), (*usual.roc, *usual.hardest, *usual.histogram))
