from __future__ import annotations

import numpy as np
import pytest
import reference_clusters as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.clustering import clusters
from facemetric.evaluation.clustering.clusters import METHODS, find_clusters


def some_people(seed, n=60, size=6, noise=0.5):
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(max(2, n // 6), size))
    return people[rng.integers(len(people), size=n)] + noise * rng.normal(size=(n, size))


def alike(one, other):
    """Whether two labellings are one partition."""
    return adjusted_rand_score(one, other) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 24), st.floats(-0.3, 0.95))
def test_components_and_average_linkage_by_hand(seed, n, threshold):
    emb = some_people(seed, n, size=4)
    score = slow.cosines(emb)
    # A pair at the threshold within rounding may fall on either side.
    edges = score[np.triu_indices(n, 1)]
    if np.abs(edges - threshold).min() < 1e-5:
        threshold += 2e-5
    assert alike(find_clusters(emb, threshold, method="components").number, slow.components(score, threshold))
    assert alike(find_clusters(emb, threshold).number, slow.average_linkage(score, threshold))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_average_linkage_is_scikit_learns_without_its_matrix(seed, threshold):
    emb = some_people(seed, 300, size=8, noise=0.8)
    peer = AgglomerativeClustering(None, metric="cosine", linkage="average", distance_threshold=1 - threshold)
    found = find_clusters(emb, threshold)
    assert 1 < len(found.sizes()) < 300
    assert alike(found.number, peer.fit_predict(emb))


@pytest.mark.parametrize("seed", range(6))
def test_dbscan_by_hand_and_as_scikit_learn_on_the_matrix(seed):
    emb, threshold, least = some_people(seed, 80, size=3, noise=0.3), 0.97, 4
    score = slow.cosines(emb)
    core, label = slow.dbscan(score, threshold, least)
    found = find_clusters(emb, threshold, method="dbscan", min_images=least)
    assert alike(found.number[core], label)
    peer = DBSCAN(eps=1 - threshold, min_samples=least, metric="precomputed")
    labels = peer.fit_predict(np.maximum(1 - score, 0))
    assert found.noise == (labels < 0).sum() > 0
    assert alike(found.number[labels >= 0], labels[labels >= 0])
    assert len(set(found.number[labels < 0].tolist())) == found.noise  # each alone
    assert set(found.number[labels < 0].tolist()).isdisjoint(found.number[labels >= 0].tolist())


@pytest.mark.parametrize("method", METHODS)
def test_neither_order_nor_length_nor_tiles_matter(method, monkeypatch):
    emb, rng = some_people(3, 90, size=5), np.random.default_rng(0)
    first = find_clusters(emb, 0.7, method=method)
    order = rng.permutation(len(emb))
    monkeypatch.setattr(clusters, "BUDGET_MIB", 0.002)  # 5 rows a tile
    again = find_clusters((emb * rng.uniform(0.1, 9, (90, 1)))[order], 0.7, method=method)
    assert alike(again.number, first.number[order])
    assert again.links == first.links
    np.testing.assert_allclose(again.distance, first.distance[order], atol=1e-5)


def test_numbers_fall_with_size_and_distances_are_to_the_centre():
    emb = some_people(5, 70)
    found = find_clusters(emb, 0.6)
    sizes = found.sizes()
    assert (np.diff(sizes) <= 0).all()
    assert sizes.sum() == 70
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    for number in range(len(sizes)):
        rows = found.rows(number)
        assert sorted(rows.tolist()) == np.flatnonzero(found.number == number).tolist()
        centre = unit[rows].mean(0)
        expected = 1 - unit[rows] @ centre / np.linalg.norm(centre)
        np.testing.assert_allclose(found.distance[rows], expected, atol=1e-6)
        assert (np.diff(found.distance[rows]) >= 0).all()
    firsts = [found.rows(number).min() for number in range(len(sizes))]
    for number in range(1, len(sizes)):
        if sizes[number] == sizes[number - 1]:
            assert firsts[number - 1] < firsts[number]


@pytest.mark.parametrize("method", METHODS)
def test_copies_go_together_and_opposites_apart(method):
    emb = np.repeat(np.eye(3), 4, axis=0)
    found = find_clusters(np.concatenate([emb, -emb]), 0.999, method=method)
    assert found.sizes().tolist() == [4] * 6
    assert found.links == 6 * 6
    np.testing.assert_allclose(found.distance, 0, atol=1e-6)
    everything = find_clusters(np.concatenate([emb, -emb]), -1, method=method)
    assert len(everything.sizes()) == 1


def test_a_chain_joins_components_but_not_averages():
    angle = np.radians(np.arange(0, 91, 15))
    emb = np.stack([np.cos(angle), np.sin(angle)], 1)
    threshold = np.cos(np.radians(16))
    assert find_clusters(emb, threshold, method="components").sizes().tolist() == [7]
    assert len(find_clusters(emb, threshold).sizes()) > 3
    assert find_clusters(emb, threshold, method="dbscan", min_images=4).noise == 7
    assert find_clusters(emb, threshold, method="dbscan", min_images=3).sizes().tolist() == [7]


def test_one_image_and_no_links():
    found = find_clusters([[1.0, 2.0]], 0.5)
    assert found.number.tolist() == [0]
    assert found.to_dict() == {
        "method": "agglomerative",
        "threshold": 0.5,
        "images": 1,
        "links": 0,
        "clusters": 1,
        "clusters_of_one_image": 1,
        "largest_cluster": 1,
        "noise_images": 0,
    }
    assert find_clusters(np.eye(4), 0.5, method="components").number.tolist() == [0, 1, 2, 3]


def test_too_many_links_are_refused(monkeypatch):
    monkeypatch.setattr(clusters, "MAX_LINKS", 2 * 45)
    emb = np.ones((15, 2))
    with pytest.raises(
        DataError, match=r"links 100\.0% of all pairs of 15 images, more than 45; choose a higher"
    ):
        find_clusters(emb, 0.9)
    assert find_clusters(emb[:10], 0.9).links == 45


def test_bad_input():
    with pytest.raises(ConfigError, match="unknown method 'dbscna': did you mean 'dbscan'"):
        find_clusters(np.eye(3), 0.5, method="dbscna")
    with pytest.raises(ConfigError, match=r"a threshold of 1\.5"):
        find_clusters(np.eye(3), 1.5)
    with pytest.raises(ConfigError, match="dbscan needs at least 1"):
        find_clusters(np.eye(3), 0.5, method="dbscan", min_images=0)
    with pytest.raises(DataError, match="1 of 3 embeddings are zero or not finite"):
        find_clusters(np.diag([1.0, 0.0, 1.0]), 0.5)
