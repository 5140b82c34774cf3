from __future__ import annotations

import numpy as np
import pytest
import reference_clusters as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from facemetric.errors import DataError
from facemetric.evaluation.clustering.agreement import agreement

LABELS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=25)


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_every_figure_by_hand_or_as_scikit_learn(rows):
    cluster, identity = [c for c, _ in rows], [f"person {p}" for _, p in rows]
    if len(set(identity)) < 2:
        identity[0] = "somebody else"
    found = agreement(cluster, identity)
    wanted = slow.bcubed(cluster, identity)
    assert (found.precision.value, found.recall.value, found.f.value) == pytest.approx(wanted)
    assert found.purity == pytest.approx(slow.purity(cluster, identity))
    assert found.nmi == pytest.approx(normalized_mutual_info_score(identity, cluster), abs=1e-9)
    assert found.ari == pytest.approx(adjusted_rand_score(identity, cluster), abs=1e-9)
    assert (found.images, found.identities, found.clusters) == (
        len(rows),
        len(set(identity)),
        len(set(cluster)),
    )


def test_the_best_and_the_two_trivial_answers():
    identity = np.repeat(np.arange(5), [1, 2, 3, 4, 10])
    best = agreement(9 - identity, identity)  # names do not matter
    assert (best.purity, best.nmi, best.ari, best.f.value) == pytest.approx((1, 1, 1, 1))
    alone = agreement(np.arange(20), identity)
    assert (alone.purity, alone.precision.value, alone.recall.value) == pytest.approx((1, 1, 5 / 20))
    together = agreement(np.zeros(20), identity)
    assert (together.purity, together.recall.value) == pytest.approx((0.5, 1))
    assert together.precision.value == pytest.approx((1 + 4 + 9 + 16 + 100) / 20 / 20)


def test_intervals_draw_people_and_not_images():
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(40), 10)
    split = rng.random(40) < 0.5  # half of the people lie in two clusters of five each
    cluster = 2 * identity + (split[identity] & (np.arange(400) % 2 == 0))
    found = agreement(cluster, identity)
    assert found.precision[:3] == pytest.approx((1, 1, 1))
    share = split.mean()
    deviation = 0.5 * np.sqrt(share * (1 - share) / 40)
    assert found.recall.value == pytest.approx(1 - share / 2)
    assert found.recall.high - found.recall.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert found.f.low < found.f.value < found.f.high
    few = np.arange(400) % 10 < 1 + identity % 10  # people of 1 to 10 images: many values of a draw
    uneven = cluster[few], identity[few]
    assert agreement(*uneven) == agreement(*uneven, seed=0) != agreement(*uneven, seed=1)
    record = found.to_dict()
    assert record["bcubed_recall"] == found.recall.value
    assert record["intervals_95"]["bcubed_recall"] == {"low": found.recall.low, "high": found.recall.high}


def test_bad_input():
    with pytest.raises(DataError, match=r"clusters of shape \(3,\), identities of shape \(2,\)"):
        agreement([0, 0, 1], ["a", "b"])
    with pytest.raises(DataError, match="1 identity; clusters are measured against two"):
        agreement([0, 0, 1], ["a", "a", "a"])
    with pytest.raises(DataError, match="0 identities; clusters"):
        agreement([], [])
