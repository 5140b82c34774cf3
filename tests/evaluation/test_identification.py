import json

import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import DataError
from facemetric.evaluation import ranks
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


@pytest.mark.parametrize("images", [1, 3])
def test_ranks_and_fnir_as_slow_loops(images, monkeypatch):
    monkeypatch.setattr(ranks, "ROWS", 16)  # several tiles each way
    monkeypatch.setattr(ranks, "COLS", 7)
    rng = np.random.default_rng(images)
    centre = rng.normal(size=(50, 8))
    gallery_labels = rng.permutation(np.repeat(np.arange(30), images))
    probe_labels = rng.integers(50, size=400)
    gallery, probe = (
        centre[who] + 0.9 * rng.normal(size=(len(who), 8)) for who in (gallery_labels, probe_labels)
    )
    gallery[5] = gallery[11]  # equal scores, of two people
    found = identify(gallery, gallery_labels, probe, probe_labels)
    known, unknown = slow.search(gallery, gallery_labels, probe, probe_labels)
    rank, mate = zip(*known, strict=True)
    assert (found.known, found.unknown) == (len(rank), len(unknown))
    assert found.rank[found.is_known].tolist() == list(rank)
    assert max(rank) > 10
    np.testing.assert_allclose(found.mate[found.is_known], mate, atol=1e-6)
    for k, share in found.ranks.items():
        assert share == np.mean([r <= k for r in rank])
    by_wanted = {p.wanted: p for p in found.misses}
    fnir, fpir, _ = slow.fnir_at_fpir(mate, unknown, 0.01)
    assert 1 - by_wanted[0.01].true_rate == pytest.approx(fnir, abs=1e-12)
    assert by_wanted[0.01].false_rate == pytest.approx(fpir, abs=1e-12)
    assert not by_wanted[0.003].supported
    assert found.to_dict()["fnir_at_fpir"]["0.003"]["fnir"] is None
    assert found.to_dict()["rank_10"] == found.ranks[10]
    # Along the DET both rates are those of a threshold.
    for far, tar, threshold in list(zip(*found.det, strict=True))[1:]:
        assert far == np.mean([s >= threshold - 2e-7 for s in unknown])
        assert tar == np.mean([s >= threshold - 2e-7 for s in mate])


def test_a_closed_set_has_ranks_alone():
    emb, labels = people(60, 12, 0.7)
    gallery = np.unique(labels, return_index=True)[1]
    probes = np.setdiff1d(np.arange(60), gallery)
    found = identify(emb[gallery], labels[gallery], emb[probes], labels[probes], closed=True)
    assert (found.unknown, found.points, found.misses, found.det) == (0, (), (), None)
    bounds = identification_intervals(found, labels[probes])
    assert list(bounds) == ["rank_1", "rank_5", "rank_10"]
    assert [f.heading.title for f in found.figures(bounds)] == ["Closed-set identification"] * 3


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
    assert list(bounds) == ["rank_1", "rank_5", "rank_10", "rank_20", "tpir_at_fpir_0.1", "fnir_at_fpir_0.01"]
    assert bounds["fnir_at_fpir_0.01"].value == 1 - found.misses[0].true_rate
    assert bounds["rank_1"].value == pytest.approx(found.rank_1)
    assert bounds["tpir_at_fpir_0.1"].value == pytest.approx(found.points[0].true_rate)
    for interval in (bounds[name] for name in ("rank_1", "tpir_at_fpir_0.1", "fnir_at_fpir_0.01")):
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
