import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facemetric.errors import DataError
from facemetric.evaluation.allpairs import verify_all_pairs
from facemetric.evaluation.curves import auc, eer, split_scores, tar_at_far

FARS = (0.5, 0.1, 0.05)


def listed(embeddings, labels):
    score, same = slow.all_pairs(embeddings, labels)
    g, i = split_scores(score, same)
    return auc(g, i), eer(g, i)[0], [tar_at_far(g, i, f).tar for f in FARS], len(g), len(i)


def figures(record):
    return record.auc, record.eer, [p.tar for p in record.points], record.n_genuine, record.n_impostor


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


def test_no_genuine_pair_and_wrong_labels():
    with pytest.raises(DataError, match="0 genuine and 3 impostor"):
        verify_all_pairs(np.eye(3), [0, 1, 2])
    with pytest.raises(DataError, match="3 embeddings need"):
        verify_all_pairs(np.eye(3), [0, 1])
