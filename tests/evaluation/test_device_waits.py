"""How often the host waits for a device that makes and searches tiles: counted on the pretended one, not timed."""

from __future__ import annotations

from typing import Any

import counting_device
import numpy as np
import pytest
from synthetic_people import exact_people

from facemetric.evaluation import nearest as nearest_room
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.all_pairs import TILE_BYTES, all_pairs_intervals
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.ranks import own_ranks
from facemetric.mining import tiles


def test_in_a_process_of_its_own() -> None:
    counting_device.run_alone(__file__)


def counted(work: Any, budget_mib: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int, int]:
    """What `work` finds on the pretended device, its launches and its waits."""
    monkeypatch.setattr(tiles, "CUDA_BUDGET_MIB", budget_mib)
    with counting_device.counting() as seen:
        found = work(counting_device.DEVICE)
        return found, seen.launches, seen.waits


@counting_device.alone
def test_a_device_is_waited_for_once_a_group_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, query = exact_people(3000, 40, 1)[0], exact_people(300, 40, 1)[0]
    usual = nearest(query, gallery, 5)
    for budget_mib in (1.0, 0.25):
        found, launches, waits = counted(
            lambda at: nearest(query, gallery, 5, device=at), budget_mib, monkeypatch
        )
        np.testing.assert_array_equal(found.rows, usual.rows)
        height, width = nearest_room._shape_on_device(300, 3000, 5, counting_device.DEVICE)
        groups, tiles_of_each = -(-300 // height), -(-3000 // width)
        assert tiles_of_each > 5
        assert waits == 1 + 2 * groups  # the gallery; the queries of each group and their keys
        assert launches <= 40 * groups * tiles_of_each


@counting_device.alone
def test_ranks_wait_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    emb, label = exact_people(900, 60, 3)
    arguments = emb[:500], label[:500], emb[500:], label[500:]
    usual = own_ranks(*arguments)
    for budget_mib in (8.0, 0.1):
        found, launches, waits = counted(lambda at: own_ranks(*arguments, device=at), budget_mib, monkeypatch)
        np.testing.assert_array_equal(found.rank, usual.rank)
        np.testing.assert_array_equal(found.mate, usual.mate)
        assert waits == 6 + 2 + 2 + 1  # both sides; the mates come back; they go there again; the counts
    assert launches > 1000  # there were many tiles


@counting_device.alone
def test_a_tile_of_pairs_waits_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    emb, label = exact_people(600, 60, 3)
    verified = verify_all_pairs(emb, label, budget_mib=0.1)
    bounds = all_pairs_intervals(emb, label, verified, draws=100)
    for work, usual, most in (
        (
            lambda at: verify_all_pairs(emb, label, budget_mib=0.1, device=at).to_dict(),
            verified.to_dict(),
            12,
        ),
        (
            lambda at: all_pairs_intervals(emb, label, verified, draws=100, device=at).figures,
            bounds.figures,
            3,
        ),
    ):
        found, launches, waits = counted(work, 0.1 * TILE_BYTES / 4, monkeypatch)
        assert found == usual
        side = tiles.tile_shape(600, 600, budget_mib=0.1, triangle=True)[0]
        rows = -(-600 // side)
        assert rows > 3
        assert waits <= 5 + most * rows * (rows + 1) // 2
        assert launches <= 60 * rows * (rows + 1) // 2
