from __future__ import annotations

import numpy as np
import pytest
import reference_metrics as slow
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation import nearest as nearest_module
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.retrieval import gallery_probe, leave_one_out, same_images
from facemetric.evaluation.table import unit_rows

CORNERS = hnp.arrays(
    np.float32, st.tuples(st.integers(8, 20), st.just(4)), elements=st.sampled_from([-1.0, 1.0])
)


def people(n, ids, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(ids, size=n)
    return (rng.normal(size=(ids, 8))[labels] + noise * rng.normal(size=(n, 8))).astype(np.float32), labels


@settings(max_examples=60, deadline=None)
@given(CORNERS, st.integers(0, 10**6))
def test_leave_one_out_as_slow_twin_with_ties_and_duplicates(emb, seed):
    labels = np.random.default_rng(seed).integers(4, size=len(emb))
    labels[:2] = 0
    ours = leave_one_out(emb, labels, knn=(1, 3, 5), recall=(1, 2, 5))
    knn, recall, rp, mapr, n = slow.retrieval(
        emb, labels, emb, labels, (1, 3, 5), (1, 2, 5), own=range(len(emb))
    )
    assert ours.knn == pytest.approx(knn)
    assert ours.recall == pytest.approx(recall)
    assert (ours.r_precision, ours.map_at_r, ours.queries) == pytest.approx((rp, mapr, n))
    assert ours.left_out == len(emb) - n


def test_gallery_probe_as_slow_twin():
    emb, labels = people(150, 30)
    gallery, probe = np.arange(150) < 100, np.arange(150) >= 100
    ours = gallery_probe(emb[gallery], labels[gallery], emb[probe], labels[probe])
    knn, recall, rp, mapr, n = slow.retrieval(
        emb[probe], labels[probe], emb[gallery], labels[gallery], (1, 5), (1, 5, 10)
    )
    assert ours.knn == pytest.approx(knn)
    assert ours.recall == pytest.approx(recall)
    assert (ours.r_precision, ours.map_at_r, ours.queries, ours.left_out) == pytest.approx(
        (rp, mapr, n, 50 - n)
    )


def test_knn_as_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    emb, labels = people(200, 20)
    gallery, probe = np.arange(200) < 150, np.arange(200) >= 150
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    peer = KNeighborsClassifier(1).fit(unit[gallery], labels[gallery])
    known = np.isin(labels, labels[gallery]) & probe
    ours = gallery_probe(emb[gallery], labels[gallery], emb[probe], labels[probe], knn=(1,))
    assert ours.knn[1] == pytest.approx(peer.score(unit[known], labels[known]))


def test_map_at_r_as_pytorch_metric_learning():
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    from pytorch_metric_learning.distances import CosineSimilarity

    emb, labels = people(120, 15)
    peer = calculator.AccuracyCalculator(
        include=("mean_average_precision_at_r", "r_precision", "precision_at_1"),
        k="max_bin_count",
        knn_func=inference.CustomKNN(CosineSimilarity()),
        device=torch.device("cpu"),
    ).get_accuracy(torch.from_numpy(emb), torch.from_numpy(labels))
    ours = leave_one_out(emb, labels)
    assert ours.map_at_r == pytest.approx(peer["mean_average_precision_at_r"])
    assert ours.r_precision == pytest.approx(peer["r_precision"])
    assert ours.recall[1] == pytest.approx(peer["precision_at_1"])


def test_by_hand_single_images_stay_in_the_gallery():
    angle = np.deg2rad([0, 10, 25, 12])
    emb = np.stack([np.cos(angle), np.sin(angle)], 1)
    result = leave_one_out(emb, ["a", "a", "a", "single"], knn=(1,), recall=(1, 2))
    # a0 -> a1; a1 -> single, a0; a2 -> single, a1
    assert (result.queries, result.left_out) == (3, 1)
    assert result.knn == {1: pytest.approx(1 / 3)}
    assert result.recall == {1: pytest.approx(1 / 3), 2: 1.0}
    # R = 2: a0 sees a1, single (0.5); a1 single, a0 (0.5); a2 single, a1 (0.5)
    assert result.r_precision == pytest.approx(0.5)
    assert result.map_at_r == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert result.to_dict()["recall_at_2"] == 1


def test_each_query_by_itself():
    emb, labels = people(150, 30)
    ours = leave_one_out(emb, labels)
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    rows = np.flatnonzero(np.bincount(labels)[labels] > 1)
    np.testing.assert_array_equal(ours.each.rows, rows)
    np.testing.assert_array_equal(ours.each.nearest, cosine.argmax(1)[rows])
    np.testing.assert_allclose(ours.each.score, cosine.max(1)[rows], atol=1e-6)
    right = labels[ours.each.nearest] == labels[rows]
    np.testing.assert_array_equal(ours.each.figures["knn_accuracy_1"], right)
    named = {k: v for k, v in ours.to_dict().items() if not k.startswith("queries")}
    assert {k: v.mean() for k, v in ours.each.figures.items()} == pytest.approx(named)
    probe = np.arange(150) >= 100
    found = gallery_probe(emb[~probe], labels[~probe], emb[probe], labels[probe])
    known = np.flatnonzero(np.isin(labels[probe], labels[~probe]))
    np.testing.assert_array_equal(found.each.rows, known)
    np.testing.assert_array_equal(found.each.nearest, cosine[probe][:, ~probe].argmax(1)[known])


def test_k_beyond_the_set_is_left_out_not_lied_about():
    emb, labels = people(6, 2)
    labels[:] = [0, 0, 0, 1, 1, 1]
    result = leave_one_out(emb, labels, knn=(1, 5), recall=(1, 5, 10))
    assert set(result.knn) == {1, 5}
    assert set(result.recall) == {1, 5}
    assert result.recall[5] == 1
    assert result.knn[5] == 0  # of five others two are of one's own, three are not
    with pytest.raises(ConfigError, match="k = 6 neighbours of 5"):
        leave_one_out(emb, labels, knn=(6,))


def test_nobody_to_find():
    with pytest.raises(DataError, match="two images or more"):
        leave_one_out(np.eye(3), [0, 1, 2])
    with pytest.raises(DataError, match="none of 3 probes is of a person in the gallery"):
        gallery_probe(np.eye(3), [0, 1, 2], np.eye(3), [3, 4, 5])


def test_the_nearest_alone_as_among_several():
    gallery, _ = people(30, 30)
    probes, labels = people(90, 30, seed=1)
    one = gallery_probe(gallery, np.arange(30), probes, labels, knn=(1,), recall=(1,))
    more = gallery_probe(gallery, np.arange(30), probes, labels, knn=(1, 2), recall=(1, 5))
    assert 0 < one.knn[1] == more.knn[1] < 1
    np.testing.assert_array_equal(one.each.nearest, more.each.nearest)
    np.testing.assert_array_equal(one.each.score, more.each.score)
    assert (one.r_precision, one.map_at_r) == (more.r_precision, more.map_at_r)


def test_labels_for_other_rows():
    with pytest.raises(DataError, match=r"labels of shape \(2,\); 3 embeddings need \(3,\)"):
        leave_one_out(np.eye(3), [0, 1])


def test_a_gallery_of_many_as_a_plain_sort():
    emb, who = people(760, 60)
    probe, gallery = slice(0, 60), slice(60, None)
    found = gallery_probe(emb[gallery], who[gallery], emb[probe], who[probe], knn=(5,), recall=(1, 5, 10))
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    order = np.argsort(-(unit[probe] @ unit[gallery].T), axis=1)
    right = who[gallery][order] == who[probe][:, None]
    np.testing.assert_array_equal(found.each.nearest, order[:, 0])
    for k in (1, 5, 10):
        assert found.recall[k] == pytest.approx(right[:, :k].any(1).mean())
    total = right.sum(1)
    assert found.r_precision == pytest.approx(
        np.mean([r[:n].mean() for r, n in zip(right, total, strict=True)])
    )


TABLES = hnp.arrays(
    np.float32, st.tuples(st.integers(8, 20), st.just(4)), elements=st.sampled_from([-1.0, 1.0])
)


@settings(max_examples=60, deadline=None)
@given(TABLES, TABLES, st.integers(1, 8))
def test_nearest_with_ties_takes_the_lower_row(queries, gallery, k):
    found = nearest(queries, gallery, k)
    for q, rows, score in zip(queries, found.rows, found.score, strict=True):
        ranked = slow.ranking(q, gallery)[:k]
        assert rows.tolist() == [i for i, _ in ranked]
        np.testing.assert_allclose(score, [s for _, s in ranked], atol=1e-6)


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(nearest_module, "LEAST_A_THREAD", 10)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("tiles", [1, 4, 300])
@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("n", [511, 512, 513, 900])
def test_nearest_in_a_gallery_of_many(n, k, tiles, threads, monkeypatch):
    rng = np.random.default_rng(n)
    gallery = np.sign(rng.normal(size=(n, 16))).astype(np.float32)  # many ties, all products exact
    queries = gallery[::17]
    monkeypatch.setattr(nearest_module, "BUDGET_MIB", len(queries) * n * 4 / 2**20 / tiles)
    found = nearest(queries, gallery, k)
    score = queries @ gallery.T / 16
    for line, rows, best in zip(score, found.rows, found.score, strict=True):
        order = np.lexsort((np.arange(n), -line))[:k]
        assert rows.tolist() == order.tolist()
        np.testing.assert_array_equal(best, line[order])


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 2**32 - 1)), min_size=1))
@example([(0.0, 3), (-0.0, 2), (0.0, 1), (-1e-30, 0), (1e-30, 9)])
def test_keys_put_the_higher_score_first_then_the_lower_row(pairs):
    score, row = np.array([s for s, _ in pairs], np.float32), np.array([r for _, r in pairs])
    order = np.argsort(nearest_module._keys(score, row), kind="stable")
    np.testing.assert_array_equal(order, np.lexsort((row, -score)))
    np.testing.assert_array_equal(nearest_module._scores(nearest_module._keys(score, row)), score)
    assert nearest_module._scores(np.array([nearest_module.NOBODY])) == -np.inf


def test_an_image_scores_1_with_its_copy_and_no_more():
    rows = unit_rows(np.random.default_rng(0).normal(size=(60, 64)))
    assert (rows @ rows.T).max() > 1  # as float32 rounds
    found = nearest(rows, rows, 2)
    assert found.rows[:, 0].tolist() == list(range(60))
    assert 1 - 1e-6 < found.score[:, 0].min() <= found.score.max() == 1


def test_k_that_the_gallery_cannot_give():
    for k in (0, 4):
        with pytest.raises(ConfigError, match=f"k = {k} neighbours of 3"):
            nearest(np.eye(3), np.eye(3), k)


@pytest.mark.parametrize("seed", range(4))
def test_images_that_are_in_the_gallery_do_not_find_themselves(seed):
    """Some probes are in the gallery, one of them three times, under any length; some people nowhere else."""
    rng = np.random.default_rng(seed)
    emb, labels = people(80, 18, seed=seed)
    probe, rest = emb[:50], emb[50:]
    rows = np.concatenate([rng.choice(50, 20, replace=False), [7, 7]])
    gallery = np.concatenate([rest, 3 * probe[rows]])
    gallery_labels = np.concatenate([labels[50:], labels[rows]])
    order = rng.permutation(len(gallery))
    gallery, gallery_labels = gallery[order], gallery_labels[order]
    itself = same_images(probe, gallery)
    place = np.argsort(order)[30:]
    assert sorted(zip(itself.probes, itself.rows, strict=True)) == sorted(zip(rows, place, strict=True))
    ours = gallery_probe(
        gallery, gallery_labels, probe, labels[:50], knn=(1, 5), recall=(1, 5), itself=itself
    )
    hits, left_out = {1: [], 5: []}, 0
    for q in range(50):
        beside = np.setdiff1d(np.arange(len(gallery)), itself.rows[itself.probes == q])
        if labels[q] not in gallery_labels[beside]:
            left_out += 1
            continue
        ranked = [beside[i] for i, _ in slow.ranking(probe[q], gallery[beside])]
        for k, right in hits.items():
            right.append(any(gallery_labels[i] == labels[q] for i in ranked[:k]))
    assert (ours.queries, ours.left_out) == (50 - left_out, left_out)
    assert ours.recall == {k: pytest.approx(np.mean(right)) for k, right in hits.items()}
    one = gallery_probe(emb, labels, emb, labels, itself=same_images(emb, emb))
    assert one.to_dict() == leave_one_out(emb, labels).to_dict()


def test_nobody_is_left_to_find_beside_itself():
    emb = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="none of 4 probes is of a person in the gallery beside itself"):
        gallery_probe(emb, range(4), emb, range(4), knn=(1,), recall=(1,), itself=same_images(emb, emb))


def test_embeddings_that_are_all_one_name_no_image():
    emb = np.ones((20, 4)) + 1e-5 * np.random.default_rng(0).normal(size=(20, 4))
    assert same_images(emb, emb).images() == 0
    assert same_images(emb, emb).unsure.tolist() == list(range(20))
    assert same_images(emb[:7], emb[:7]).images() == 7  # fewer than so many copies are copies


def test_one_image_with_many_copies_leaves_the_others_found():
    emb = np.random.default_rng(0).normal(size=(30, 16))
    gallery = np.concatenate([emb, np.repeat(emb[4:5], 7, 0), np.repeat(emb[9:10], 6, 0)])
    found = same_images(emb, gallery)
    assert found.unsure.tolist() == [4]  # eight of it; of image 9 there are seven
    assert np.unique(found.probes).tolist() == [i for i in range(30) if i != 4]
    assert (found.probes == 9).sum() == 7


def test_a_person_with_the_whole_gallery_beside_copies():
    """One probe is not in a gallery of three images of its person, another is: all three count for the first."""
    gallery = np.array([[1, 0], [0.9, 0.1], [0.8, 0.2]], np.float32)
    probe = np.array([[0.5, 0.5], [1, 0]], np.float32)
    found = gallery_probe(
        gallery, [0] * 3, probe, [0, 0], knn=(1,), recall=(1,), itself=same_images(probe, gallery)
    )
    assert (found.r_precision, found.map_at_r, found.queries) == (1, 1, 2)
    assert found.each.nearest.tolist() == [2, 1]
