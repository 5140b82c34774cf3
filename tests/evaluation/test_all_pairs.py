import numpy as np
import pytest
import reference_metrics as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facemetric.errors import DataError
from facemetric.evaluation import all_pairs as allpairs
from facemetric.evaluation.all_pairs import STEPS, Tally, verify_all_pairs
from facemetric.evaluation.curves import auc, eer, split_scores, tar_at_far
from facemetric.evaluation.intervals.all_pairs import count_by_person
from facemetric.evaluation.table import unit_rows

FARS = (0.5, 0.1, 0.05)


def listed(embeddings, labels):
    score, same = slow.all_pairs(embeddings, labels)
    g, i = split_scores(score, same)
    return auc(g, i), eer(g, i)[0], [tar_at_far(g, i, f).true_rate for f in FARS], g.total, i.total


def figures(record):
    return record.auc, record.eer, [p.true_rate for p in record.points], record.n_genuine, record.n_impostor


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(3, 24), st.just(4)), elements=st.sampled_from([-1.0, 1.0])),
    st.integers(0, 10**6),
)
def test_as_the_listed_pairs_with_ties_and_duplicates(emb, seed):
    # Corners of a cube: all lengths are 2 and every cosine is a multiple of 1/2, exact in float32.
    labels = np.random.default_rng(seed).integers(max(2, len(emb) // 3), size=len(emb))
    labels[:3] = [0, 0, 1]
    np.testing.assert_allclose(
        *(np.hstack(f) for f in (figures(verify_all_pairs(emb, labels, fars=FARS)), listed(emb, labels)))
    )


@pytest.mark.parametrize("n", [40, 300])
def test_as_scikit_learn_on_random_embeddings(n):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(n)
    labels = rng.integers(n // 5, size=n)
    emb = (rng.normal(size=(n // 5, 16))[labels] + rng.normal(size=(n, 16))).astype(np.float32) * 5
    record = verify_all_pairs(emb, labels.astype(str), fars=FARS)
    score, same = slow.all_pairs(emb, labels)
    assert record.auc == pytest.approx(roc_auc_score(same, score), abs=1e-6)
    assert record.eer == pytest.approx(listed(emb, labels)[1], abs=1e-3)
    shuffle = rng.permutation(n)
    np.testing.assert_allclose(
        np.hstack(figures(verify_all_pairs(emb[shuffle], labels[shuffle], fars=FARS))),
        np.hstack(figures(record)),
        atol=1e-3,
    )


def floored(score, exact_from):
    """Scores below `exact_from` on the grid, the others as they are."""
    return np.where(score >= exact_from, score, np.floor(score * 16384) / 16384)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize("keep", [1, 30, 100, 300, 800])
@pytest.mark.parametrize("people", [2, 12])
def test_beyond_the_kept_scores_counts_stay_exact(keep, pieces, ties, people):
    rng = np.random.default_rng(keep + pieces)
    labels = rng.integers(people, size=40)
    emb = rng.normal(size=(people, 4))[labels] + rng.normal(size=(40, 4))
    emb = np.sign(emb) if ties else emb
    record = verify_all_pairs(emb, labels, fars=FARS, keep=keep, budget_mib=40 * 40 * 4 / 2**20 / pieces)
    score, same = slow.all_pairs(emb, labels)
    assert (record.n_genuine, record.n_impostor) == (same.sum(), (~same).sum())
    # The sums of the slow twin and of the product differ in the last digits, so near an edge either may win.
    assert record.auc == pytest.approx(slow.auc(floored(score, record.exact_from), same), abs=2e-4)
    assert record.eer == pytest.approx(slow.eer(score, same), abs=2e-3)
    for point in record.points:
        assert (point.false_rate, point.true_rate) == pytest.approx(
            slow.rates(score + 1e-6, same, point.threshold), abs=2e-3
        )
        assert point.false_rate <= point.wanted
        best = slow.tar_at_far(score, same, point.wanted)
        next_edge = np.ceil(best[2] * 16384) / 16384
        assert point.true_rate in (
            pytest.approx(best[0]),
            pytest.approx(slow.rates(score + 1e-6, same, next_edge)[1]),
        )
        assert point.threshold >= best[2] - 1 / 16384 - 1e-6
    for far, tar, threshold in zip(*record.roc, strict=True):
        assert (far, tar) == pytest.approx(slow.rates(score + 1e-6, same, threshold), abs=4e-3)
    assert (record.roc.far[-1], record.roc.tar[-1]) == (1, 1)
    assert (record.exact_from > -np.inf) == (max(record.n_genuine, record.n_impostor) > 2 * keep)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize(("spread", "step"), [(0.2, 2**-40), (0.002, 2**-40), (0.2, 2**-11), (0.2, 2**-7)])
def test_the_kept_scores_are_the_highest(spread, step, device):
    rng = np.random.default_rng(0)
    score = (np.round(rng.normal(size=50_000).clip(-5, 5) * spread / step) * step).astype(np.float32)
    tally = Tally(len(score), keep=1000)
    for piece in np.array_split(score * np.float32(STEPS), 37):
        if device:
            tally.add_tile(torch.from_numpy(np.append(piece, allpairs.LEFT_OUT)))
        else:
            tally.add(piece.copy())
    counted = tally.scores()
    assert 250 < len(counted.kept) <= 2000
    np.testing.assert_array_equal(counted.kept, np.sort(score)[-len(counted.kept) :])
    assert counted.kept[0] >= counted.exact_from > np.sort(score)[-len(counted.kept) - 1]
    expected = len(score) - np.searchsorted(np.sort(score), counted.edge.astype(np.float32))
    np.testing.assert_array_equal(counted.at_least(counted.edge), expected)
    assert counted.total == 50_000


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize(("images", "people"), [(90, 3), (90, 40), (6, 3)])
def test_hardest_pairs_and_histogram_of_the_tiles(images, people, pieces):
    rng = np.random.default_rng(people)
    labels = rng.integers(people, size=images)
    labels[:3] = [0, 0, 1]
    emb = rng.normal(size=(people, 6))[labels] + rng.normal(size=(images, 6))
    record = verify_all_pairs(emb, labels, budget_mib=images * images * 4 / 2**20 / pieces)
    score, same = slow.all_pairs(emb, labels)
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    for pairs, kind, sign in ((record.hardest.genuine, True, 1), (record.hardest.impostor, False, -1)):
        expected = sign * np.sort(sign * score[same == kind])[:24]
        assert len(pairs.score) == min(24, (same == kind).sum())
        np.testing.assert_allclose(pairs.score, expected, atol=1e-6)
        assert ((labels[pairs.rows_a] == labels[pairs.rows_b]) == kind).all()
        np.testing.assert_allclose(pairs.score, (unit[pairs.rows_a] * unit[pairs.rows_b]).sum(1), atol=1e-6)
        assert len({frozenset(p) for p in zip(pairs.rows_a, pairs.rows_b, strict=True)}) == len(pairs.score)
    for kind, count in ((True, record.histogram.genuine), (False, record.histogram.impostor)):
        np.testing.assert_array_equal(count, np.histogram(score[same == kind], record.histogram.edge)[0])


@pytest.mark.parametrize("keep", [200, 100_000])
def test_threads_change_nothing(keep, monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(30, size=400)
    emb = np.sign(rng.normal(size=(30, 8))[labels] + rng.normal(size=(400, 8)))  # many ties
    budget = 400 * 400 * 4 / 2**20 / 60
    one = verify_all_pairs(emb, labels, fars=FARS, keep=keep, budget_mib=budget)
    monkeypatch.setattr(allpairs, "walking_threads", lambda n: 3)
    for _ in range(3):
        three = verify_all_pairs(emb, labels, fars=FARS, keep=keep, budget_mib=3 * budget)
        assert one.to_dict() == three.to_dict()
        for mine, other in zip(
            (*one.roc, *one.histogram, *one.hardest.genuine, *one.hardest.impostor),
            (*three.roc, *three.histogram, *three.hardest.genuine, *three.hardest.impostor),
            strict=True,
        ):
            np.testing.assert_array_equal(mine, other)


def test_ties_among_the_hardest_go_by_place():
    # 40 images of one face, each of a person: every impostor score is the same.
    labels = np.append(np.arange(40), 39)
    record = verify_all_pairs(np.ones((41, 3)), labels, budget_mib=41 * 41 * 4 / 2**20 / 9)
    places = zip(record.hardest.impostor.rows_a, record.hardest.impostor.rows_b, strict=True)
    assert list(places) == [(0, j) for j in range(1, 25)]


def test_more_ties_than_can_be_kept():
    emb = np.ones((60, 4))
    labels = np.arange(60) % 20
    record = verify_all_pairs(emb, labels, fars=FARS, keep=10)
    assert (record.auc, record.eer) == (0.5, 0.5)
    assert [p.true_rate for p in record.points] == [0, 0, 0]
    assert record.to_dict()["thresholds_on_a_grid_below"] > 1


@pytest.mark.parametrize("keep", [10, 10_000])
def test_copies_and_opposites_score_1_and_no_more(keep):
    rng = np.random.default_rng(0)
    one = rng.normal(size=(60, 64)).astype(np.float32)
    unit = unit_rows(one)
    assert (unit @ unit.T).max() > 1  # as float32 rounds
    emb, labels = np.concatenate([one, one, -one[:1]]), np.append(np.tile(np.arange(60), 2), 60)
    # Half of the copies stand under another name.
    labels[60:90] = np.roll(labels[60:90], 1)
    found = verify_all_pairs(emb, labels, fars=(1.0, 4e-3, 2e-3, 1e-3, 2e-4), keep=keep)
    assert found.points[0].accepted_impostors == found.n_impostor  # the opposites too
    for threshold in (found.eer_threshold, *(p.threshold for p in found.points), *found.roc.threshold):
        assert -1 <= threshold <= 1 or threshold == np.inf
    for pairs in found.hardest:
        assert abs(pairs.score).max() <= 1
    # Who counts the pairs once more counts the same ones at these thresholds.
    for p in found.points:
        if np.isfinite(p.threshold):
            counts = count_by_person(emb, labels, np.array([p.threshold]))
            assert counts.impostor.sum() // 2 == p.accepted_impostors
            assert counts.genuine.sum() / found.n_genuine == p.true_rate
    on_grid = count_by_person(emb, labels, np.arange(-8, 9) / 8)
    assert on_grid.impostor[:, 0].sum() // 2 == found.n_impostor


def test_the_bins_beyond_1_and_below_minus_1():
    tally = Tally(5, keep=1)
    tally.add(np.array([-STEPS - 0.01, -STEPS, 0, 3, STEPS + 0.01], np.float32))
    counted = tally.scores()
    at = np.array([-1 - 1 / STEPS, -1, 0, 1, 1 + 1 / STEPS])
    assert counted.at_least(at).tolist() == [5, 5, 3, 1, 0]
    assert counted.kept.tolist() == [1]


@pytest.mark.parametrize("device", [False, True])
def test_the_lowest_score_that_can_be_kept(device):
    tally = Tally(12, keep=4)
    for piece in ([100, 100, 50.5, 50.5, 50.5, 1, 2, 3, 4], [51, 50.9, 3]):  # three of one bin are too many
        scores = np.array(piece, np.float32)
        if device:
            tally.add_tile(torch.from_numpy(scores))
        else:
            tally.add(scores)
    assert (tally.scores().kept * STEPS).tolist() == [51, 100, 100]


def test_no_genuine_pair_and_wrong_labels():
    with pytest.raises(DataError, match="0 genuine and 3 impostor"):
        verify_all_pairs(np.eye(3), [0, 1, 2])
    with pytest.raises(DataError, match="3 embeddings need"):
        verify_all_pairs(np.eye(3), [0, 1])


@pytest.mark.parametrize("keep", [100, 1 << 20])
def test_tiles_that_are_counted_on_their_device(keep):
    """As by the threads of the CPU: every count, every high score and the hardest pairs."""
    rng = np.random.default_rng(4)
    labels = rng.integers(120, size=700)
    emb = (rng.normal(size=(120, 8))[labels] + rng.normal(size=(700, 8))).astype(np.float32)
    emb[5::90] = emb[4::90]
    arguments = {"fars": FARS, "keep": keep, "budget_mib": 0.05}  # the same tiles: products are the same bits
    usual = verify_all_pairs(emb, labels, **arguments)
    found = verify_all_pairs(emb, labels, **arguments, device=torch.device("cpu"))
    assert found.to_dict() == usual.to_dict()
    assert found.exact_from == usual.exact_from
    assert (found.exact_from > -1) == (keep == 100)
    np.testing.assert_array_equal(found.roc.far, usual.roc.far)
    for one, other in zip(found.hardest, usual.hardest, strict=True):
        for name in one._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_gpu_counts_what_the_cpu_counts():
    """Rows of four halves: their products are exact on any device. Where there is a GPU, tools/check_gpu.sh shows it to
    this test."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rng = np.random.default_rng(5)
    emb = np.zeros((3000, 16), np.float32)
    at = rng.random(emb.shape).argsort(1)[:, :4]
    np.put_along_axis(emb, at, rng.choice([0.5, -0.5], size=at.shape).astype(np.float32), 1)
    labels = rng.integers(400, size=3000)
    for keep in (1000, 1 << 23):
        usual = verify_all_pairs(emb, labels, fars=FARS, keep=keep)
        found = verify_all_pairs(emb, labels, fars=FARS, keep=keep, device=device)
        assert found.to_dict() == usual.to_dict()
        np.testing.assert_array_equal(found.roc.far, usual.roc.far)
        np.testing.assert_array_equal(found.roc.tar, usual.roc.tar)
