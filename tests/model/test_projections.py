"""Where the projection starts: exactly at stage one, or at scikit-learn's PCA and LDA."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from facemetric.data.images import Preprocess
from facemetric.errors import ConfigError
from facemetric.evaluation.table import unit_rows
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.model.projections import Refit, lda, pca, start_projection

C, PER, F = 9, 14, 20


@pytest.fixture(scope="module")
def people() -> tuple[np.ndarray, np.ndarray]:
    """Features (C * PER, F) of C identities in correlated noise, and labels with gaps between them."""
    rng = np.random.default_rng(0)
    mean_CF = rng.normal(size=(C, F)) * np.linspace(2.0, 0.2, F)
    noise_FF = rng.normal(size=(F, F)) * 0.4
    labels = np.repeat(np.arange(C) * 3 + 5, PER)
    features = mean_CF[np.repeat(np.arange(C), PER)] + rng.normal(size=(C * PER, F)) @ noise_FF + 3.0
    return features, labels


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    """resnet10t at 32 px, 512 features."""
    torch.manual_seed(0)
    return build_embedder("resnet10t", preprocess=Preprocess(size=(32, 32)))


def angles(one_DF: np.ndarray, other_DF: np.ndarray) -> np.ndarray:
    """Angles between two subspaces, radians."""
    return scipy.linalg.subspace_angles(np.asarray(one_DF).T, np.asarray(other_DF).T)


def test_pca_is_scikit_learns(people: tuple[np.ndarray, np.ndarray]) -> None:
    features, _ = people
    weight, bias = pca(features, 6)
    expected = PCA(6, svd_solver="full").fit_transform(features)
    sign = np.sign((features @ weight.T + bias)[0] * expected[0])
    np.testing.assert_allclose((features @ weight.T + bias) * sign, expected, atol=1e-8)
    many = np.random.default_rng(1).normal(size=(700, 600)) * np.linspace(5, 1, 600)  # the other solver
    weight, _ = pca(many, 3)
    assert angles(weight, PCA(3, svd_solver="full").fit(many).components_).max() < 1e-6


def test_lda_without_shrinkage_spans_scikit_learns(
    people: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.model import projections

    features, labels = people
    monkeypatch.setattr(projections, "ledoit_wolf", lambda x, assume_centered: (x.T @ x / len(x), 0.0))
    for size in (1, 3, C - 1):
        weight, _ = lda(features, labels, size)
        expected = LinearDiscriminantAnalysis(solver="eigen").fit(features, labels).scalings_[:, :size].T
        assert angles(weight, expected).max() < 1e-6
        # Each direction by itself, up to its length and sign.
        ours, theirs = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (weight, expected))
        np.testing.assert_allclose(np.abs((ours * theirs).sum(1)), 1, atol=1e-8)
    svd = LinearDiscriminantAnalysis(solver="svd").fit(features, labels).scalings_[:, : C - 1].T
    assert angles(lda(features, labels, C - 1)[0], svd).max() < 1e-6


def test_lda_with_shrinkage_solves_its_equation(people: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = (part[20:] for part in people)  # one identity has 8 images, and counts as much
    weight, bias = lda(features, labels, 4)
    groups = [features[labels == label] for label in np.unique(labels)]
    means = np.stack([group.mean(0) for group in groups])
    centred = np.concatenate([group - group.mean(0) for group in groups])
    within = LedoitWolf(assume_centered=True).fit(centred).covariance_
    within = within * len(centred) / (len(centred) - len(means))
    between = np.cov(means.T)
    # Within identities the directions are uncorrelated, each of variance b / (b + 1).
    b = np.diag(weight @ between @ weight.T) / np.diag(weight @ within @ weight.T)
    np.testing.assert_allclose(weight @ within @ weight.T, np.diag(b / (b + 1)), atol=1e-8)
    assert (np.diff(b) < 0).all()
    assert b[0] == pytest.approx(scipy.linalg.eigh(between, within, eigvals_only=True)[-1])
    np.testing.assert_allclose((means @ weight.T + bias).mean(0), 0, atol=1e-10)


def test_lda_does_not_ask_for_the_order(people: tuple[np.ndarray, np.ndarray]) -> None:
    features, labels = people
    shuffled = np.random.default_rng(0).permutation(len(labels))
    weight, other = lda(features, labels, 3)[0], lda(features[shuffled], labels[shuffled], 3)[0]
    np.testing.assert_allclose(np.abs(other), np.abs(weight), rtol=1e-6)


@pytest.mark.parametrize("size", [0, 12])
def test_identity_is_stage_ones_embedding_bit_for_bit(size: int) -> None:
    torch.manual_seed(0)
    embedder = build_embedder("lcnet_035", preprocess=Preprocess(size=(32, 32)), embedding_size=size)
    embedder.eval()
    features = torch.randn(50, embedder.num_features)
    start = start_projection("identity", embedder, np.empty((0, 0)), np.empty(0), size=77, seed=0)
    assert start.out_features == (size or embedder.num_features)
    assert torch.equal(start(features), embedder.project(features))


def test_random_is_orthogonal_and_follows_the_seed(embedder: Embedder) -> None:
    def weight(seed: int) -> torch.Tensor:
        empty = np.empty((0, 512)), np.empty(0)
        return start_projection("random", embedder, *empty, size=16, seed=seed).weight.detach()

    torch.testing.assert_close(weight(0) @ weight(0).T, torch.eye(16), atol=1e-5, rtol=0)
    assert torch.equal(weight(0), weight(0))
    assert not torch.allclose(weight(0), weight(1))


@pytest.mark.parametrize("kind", ["pca", "lda"])
def test_a_start_from_features_is_put_into_the_layer(embedder: Embedder, kind: str) -> None:
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(40, 512)).astype(np.float32), np.arange(40) % 8
    layer = start_projection(kind, embedder, features, labels, size=5, seed=0)
    weight, bias = (
        pca(features.astype(np.float64), 5) if kind == "pca" else lda(features.astype(np.float64), labels, 5)
    )
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "most"), [("pca", 40), ("lda", 7)])
def test_more_directions_than_the_data_has(embedder: Embedder, kind: str, most: int) -> None:
    features, labels = np.zeros((40, 512), np.float32), np.arange(40) % 8
    with pytest.raises(ConfigError, match=rf"{kind} gives at most {most} directions .* is {most + 1}; lower"):
        start_projection(kind, embedder, features, labels, size=most + 1, seed=0)


def test_an_unknown_start_names_the_nearest(embedder: Embedder) -> None:
    with pytest.raises(ConfigError, match="did you mean 'lda'"):
        start_projection("ldaa", embedder, np.empty((0, 0)), np.empty(0), size=1, seed=0)


@pytest.mark.parametrize("own", ["features", "layer"])
def test_refit_is_scikit_learns_ridge_to_the_unit_embeddings(
    own: str, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same layer but for one scale, whatever the chunks; the mean length is that of the embedder's own."""
    from facemetric.model import projections

    monkeypatch.setattr(projections, "CHUNK", 100)
    rng = np.random.default_rng(0)
    count = 700
    features = (rng.normal(size=(count, 40)) @ rng.normal(size=(40, 512)) + 3 * rng.normal(size=512)).astype(
        np.float32
    )
    features += 0.5 * rng.normal(size=features.shape).astype(np.float32)
    layer = torch.nn.Linear(512, 24) if own == "layer" else torch.nn.Identity()
    monkeypatch.setattr(type(embedder), "folded_projection", lambda self: layer)
    with torch.no_grad():
        emb = layer(torch.from_numpy(features))
    length = float(emb.norm(dim=1).mean())
    unit = torch.nn.functional.normalize(emb, dim=1).numpy()
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    expected = Ridge(alpha=0.03 * float((centred**2).sum()) / 512).fit(features.astype(np.float64), unit)
    found = start_projection(
        "refit", embedder, features, np.zeros(count, np.int64), size=7, seed=0, how=Refit(0.03)
    )
    np.testing.assert_allclose(found.weight.detach().numpy() / length, expected.coef_, atol=2e-5)
    values = found(torch.from_numpy(features)).detach().numpy() / length
    np.testing.assert_allclose(values, expected.predict(features), atol=2e-4)
    assert np.abs(values - unit).max() > 1e-2  # it is another layer than the embedder's own


@pytest.mark.parametrize(("share", "constant"), [(0.6, 0.0), (0.0, 0.5), (0.6, 0.5)])
def test_a_refit_aims_at_the_teacher_and_at_what_all_share(
    share: float, constant: float, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cosines are those of scikit-learn's ridge to all targets, in their 24 main directions."""
    from facemetric.model import projections

    monkeypatch.setattr(projections, "CHUNK", 100)
    rng = np.random.default_rng(2)
    count = 600
    features = (rng.normal(size=(count, 40)) @ rng.normal(size=(40, 512))).astype(np.float32) + 2
    teacher = unit_rows(2 + rng.normal(size=(count, 10)) + features[:, :10] / 20)
    layer = torch.nn.Linear(512, 24)
    monkeypatch.setattr(type(embedder), "folded_projection", lambda self: layer)
    with torch.no_grad():
        emb = layer(torch.from_numpy(features))
    unit = torch.nn.functional.normalize(emb, dim=1).numpy().astype(np.float64)
    plain = features.astype(np.float64)
    ridge = Ridge(alpha=0.5 * float(((plain - plain.mean(0)) ** 2).sum()) / 512)
    weight = share * np.sqrt(unit.var(0).sum() / teacher.var(0).sum())
    parts = [ridge.fit(plain, unit).predict(plain)]
    if share:
        parts.append(weight * ridge.fit(plain, teacher - teacher.mean(0)).predict(plain))
    values = np.concatenate([*parts, np.full((count, 1), constant)], axis=1)
    left, sizes, _ = np.linalg.svd(values, full_matrices=False)
    expected = left[:, :24] * sizes[:24]
    how = Refit(0.5, share, constant)
    found = start_projection(
        "refit",
        embedder,
        features,
        np.zeros(count, np.int64),
        size=7,
        seed=0,
        how=how,
        teacher_NT=teacher.astype(np.float32),
    )
    seen = found(torch.from_numpy(features)).detach().double().numpy() / float(emb.norm(dim=1).mean())
    assert seen.shape == (count, 24)
    np.testing.assert_allclose(seen @ seen.T, expected @ expected.T, atol=1e-3)
    without = start_projection(
        "refit", embedder, features, np.zeros(count, np.int64), size=7, seed=0, how=Refit(0.5)
    )
    before = without(torch.from_numpy(features)).detach().double().numpy()
    assert np.abs(unit_rows(before) @ unit_rows(before).T - unit_rows(seen) @ unit_rows(seen).T).max() > 0.02


def test_refit_to_a_layer_that_gives_unit_vectors_already_is_that_layer(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    features = np.zeros((300, 512), np.float32)
    turn = rng.uniform(0, 2 * np.pi, size=300)
    features[:, 0], features[:, 1] = np.cos(turn), np.sin(turn)
    layer = torch.nn.Identity()
    monkeypatch.setattr(type(embedder), "folded_projection", lambda self: layer)
    found = start_projection(
        "refit", embedder, features, np.zeros(300, np.int64), size=7, seed=0, how=Refit(1e-4)
    )
    values = found(torch.from_numpy(features)).detach()
    torch.testing.assert_close(
        torch.nn.functional.normalize(values, dim=1), torch.from_numpy(features), atol=1e-3, rtol=0
    )
