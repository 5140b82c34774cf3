import json

import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import DataError
from facemetric.evaluation.identification import (
    draw_open_set,
    identification_intervals,
    identify,
)


def people(n, ids, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(ids, size=n)
    return rng.normal(size=(ids, 8))[labels] + noise * rng.normal(size=(n, 8)), labels


def test_tpir_at_fpir_as_slow_loop():
    emb, labels = people(240, 40, 0.5)
    gallery = (np.arange(240) < 120) & (labels < 25)
    probe = np.arange(240) >= 120
    found = identify(emb[gallery], labels[gallery], emb[probe], labels[probe], fpirs=(0.2, 0.1, 0.001, 1.0))
    known, unknown, right_at_all = [], [], 0
    for e, person in zip(emb[probe], labels[probe], strict=True):
        row, score = slow.ranking(e, emb[gallery])[0]
        if person in labels[gallery]:
            right = labels[gallery][row] == person
            right_at_all += right
            known.append((score, right))
        else:
            unknown.append(score)
    assert (found.known, found.unknown) == (len(known), len(unknown))
    assert found.rank_1 == pytest.approx(right_at_all / len(known))
    assert right_at_all < len(known)  # or the threshold alone would decide
    for point in found.points[:2]:
        best = 0.0
        for threshold in {s for s, _ in known} | set(unknown):
            if sum(s >= threshold for s in unknown) / len(unknown) <= point.wanted:
                best = max(best, sum(s >= threshold and right for s, right in known) / len(known))
        assert point.true_rate == pytest.approx(best)
        assert point.false_rate <= point.wanted
    assert not found.points[2].supported
    assert found.points[3].true_rate == pytest.approx(found.rank_1)
    assert found.to_dict()["tpir_at_fpir"]["0.001"]["tpir"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_identification_needs_both_kinds():
    emb, labels = people(20, 4, 0.5)
    with pytest.raises(DataError, match="20 known and 0 unknown"):
        identify(emb, labels, emb, labels)
    with pytest.raises(DataError, match="one an embedding"):
        identify(emb, labels[:3], emb, labels)


def test_a_drawn_open_set():
    labels = np.random.default_rng(0).integers(40, size=100)
    gallery, probes = draw_open_set(labels, seed=1)
    assert sorted([*gallery, *probes]) == list(range(100))
    several = np.flatnonzero(np.bincount(labels) >= 2)
    enrolled = labels[gallery]
    assert len(set(enrolled)) == len(enrolled) == len(several) // 2  # one image each
    assert set(enrolled) < set(several)
    assert set(enrolled) <= set(labels[probes])  # each has a probe to be found by
    assert set(several) - set(enrolled) <= set(labels[probes])
    np.testing.assert_array_equal(draw_open_set(labels, seed=1).gallery, gallery)
    assert draw_open_set(labels, seed=2).gallery.tolist() != gallery.tolist()
    assert len({int(draw_open_set([0, 0, 0, 1, 1], seed=s).gallery[0]) for s in range(30)}) == 5
    with pytest.raises(DataError, match="1 of 3 people have two images or more"):
        draw_open_set([0, 0, 1, 2])


def test_identification_intervals_hold_and_count_people():
    emb, labels = people(600, 80, 0.6)
    gallery, probes = draw_open_set(labels, seed=0)
    found = identify(emb[gallery], labels[gallery], emb[probes], labels[probes], fpirs=(0.1, 0.001))
    bounds = identification_intervals(found, labels[probes], seed=0)
    assert list(bounds) == ["rank_1", "tpir_at_fpir_0.1"]
    assert bounds["rank_1"].value == pytest.approx(found.rank_1)
    assert bounds["tpir_at_fpir_0.1"].value == pytest.approx(found.points[0].true_rate)
    for interval in bounds.values():
        assert 0.02 < interval.high - interval.low < 0.5
        assert interval.low < interval.value < interval.high
    # At FPIR = 1 every right match is accepted and no wrong one: rank 1, in the draws as well.
    whole = identify(emb[gallery], labels[gallery], emb[probes], labels[probes], fpirs=(1.0,))
    assert whole.rank_1 < 1
    at_all = identification_intervals(whole, labels[probes], draws=2000)
    assert at_all["tpir_at_fpir_1"].value == whole.points[0].true_rate == whole.rank_1
    for side in ("low", "high"):  # other draws, of weights, of the same figure
        one, other = (getattr(at_all[name], side) for name in ("tpir_at_fpir_1", "rank_1"))
        assert one == pytest.approx(other, abs=0.02)
    # Four times the same probes are no more people.
    many = np.tile(probes, 4)
    again = identify(emb[gallery], labels[gallery], emb[many], labels[many], fpirs=(0.1,))
    wide = identification_intervals(again, labels[many], seed=0)
    for name in ("rank_1", "tpir_at_fpir_0.1"):
        assert wide[name].high - wide[name].low > 0.8 * (bounds[name].high - bounds[name].low)
