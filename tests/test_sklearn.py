"""facemetric.sklearn: scikit-learn's own checks, its tools, and the same bits as finetune."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import estimator_checks
from small_trainings import FAST, KEY, stage_one, tensors
from untrained_weights import own_weights, untrained

from facemetric import load_embedder
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.model.weights.folder import amend_config
from facemetric.sklearn import FaceEmbedder, TripletProjection
from facemetric.training.finetune import finetune
from facemetric.training.run.run import Trained

__all__ = ["own_weights", "stage_one", "untrained"]


def blobs(identities: int = 12, images: int = 8, features: int = 16, seed: int = 0) -> tuple[Any, Any]:
    """Features whose first half tells the label, and whose louder second half does not."""
    draw = np.random.default_rng(seed)
    centre = draw.normal(size=(identities, features // 2))
    y = np.repeat(np.arange(identities), images)
    told = centre[y] + 0.3 * draw.normal(size=(len(y), features // 2))
    return np.hstack([told, 3 * draw.normal(size=(len(y), features - features // 2))]), y


def paths_of(faces: Path) -> tuple[list[str], np.ndarray]:
    files = sorted(str(path) for path in faces.rglob("*") if path.is_file())
    return files, np.array([Path(file).parent.name for file in files])


@pytest.fixture
def embedder(untrained: Path) -> FaceEmbedder:
    return FaceEmbedder(str(untrained), device="cpu")


@estimator_checks.parametrize_with_checks([TripletProjection(epochs=3)])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_estimators_overwrite_params,
        estimator_checks.check_estimators_fit_returns_self,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_set_params,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_checks_that_need_no_numbers(embedder: FaceEmbedder, check: Any) -> None:
    """parametrize_with_checks has one check for an estimator of pictures; these are the others that fit it."""
    check("FaceEmbedder", embedder)


def test_the_projection_learns_what_tells_labels_apart() -> None:
    X, y = blobs()
    new, names = blobs(seed=0, images=6)
    knn = KNeighborsClassifier(1)
    before = knn.fit(X[::2], y[::2]).score(X[1::2], y[1::2])
    model = make_pipeline(TripletProjection(epochs=60, lr=0.02, random_state=0), knn).fit(X[::2], y[::2])
    after = model.score(X[1::2], y[1::2])
    assert after > before + 0.2, (before, after)
    emb = model[0].transform(new)
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), 1)
    assert emb.shape == (len(names), 16)


def test_bits_are_those_of_finetune_on_the_same_features(
    stage_one: Trained, faces: Path, tmp_path: Path
) -> None:
    """The projection that `finetune --freeze backbone` ends with, from scikit-learn's side."""
    options: dict[str, Any] = {"miner": "distance-weighted", "margin": 0.4, "lr": 0.01, "batch_size": 24}
    run = finetune(
        str(faces),
        weights=stage_one.weights,
        out=tmp_path / "run",
        **FAST | options | {"epochs": 3, "seed": 5},
        freeze="backbone",
        projection_init="lda",
        embedding_size=6,
        val_fraction=0.0,
    )
    (kept,) = (tmp_path / "features").glob("*.npy")
    X, (_, names) = np.load(kept)[0], paths_of(faces)
    model = TripletProjection(6, start="lda", epochs=3, random_state=5, validation_fraction=0, **options)
    model.fit(X, names)
    np.testing.assert_array_equal(model.components_, tensors(run)[f"{KEY}.weight"])
    np.testing.assert_array_equal(model.intercept_, tensors(run)[f"{KEY}.bias"])


def test_random_state_decides_the_bits() -> None:
    X, y = blobs()
    one, other, third = (
        TripletProjection(4, start="random", epochs=3, random_state=seed).fit(X, y).components_
        for seed in (1, 1, 2)
    )
    assert (one == other).all()
    assert (one != third).any()
    global_state = torch.random.get_rng_state(), np.random.get_state()[1]
    TripletProjection(epochs=2, random_state=np.random.RandomState(3)).fit(X, y)
    assert torch.equal(global_state[0], torch.random.get_rng_state())
    assert (global_state[1] == np.random.get_state()[1]).all()


def test_held_out_identities_choose_the_epoch() -> None:
    X, y = blobs(identities=20)
    held = TripletProjection(epochs=8, lr=0.02, validation_fraction=0.3, random_state=0).fit(X, y)
    assert len(held.scores_) == 9
    assert held.best_epoch_ == int(held.scores_.argmax()) > 0
    wild = TripletProjection(epochs=3, lr=50.0, validation_fraction=0.3, random_state=0).fit(X[:, :8], y)
    assert wild.best_epoch_ == 0, wild.scores_  # a rate that ruins it: the start is kept
    np.testing.assert_array_equal(wild.components_, np.eye(8))
    few = TripletProjection(epochs=2, validation_fraction=0.1, random_state=0).fit(*blobs(identities=4))
    assert (len(few.scores_), few.best_epoch_) == (0, 2)


def test_identity_keeps_cosines_and_fewer_components_most_of_them() -> None:
    X, y = blobs(features=6)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    emb = TripletProjection(epochs=1, lr=1e-12).fit(X, y).transform(X)
    np.testing.assert_allclose(emb @ emb.T, unit @ unit.T, atol=1e-5)
    flat = np.hstack([X[:, :2], 1e-4 * X[:, 2:]])  # two directions hold all but nothing
    two = TripletProjection(2, epochs=1, lr=1e-12).fit(flat, y).transform(flat)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(two @ two.T, unit @ unit.T, atol=1e-2)


@pytest.mark.parametrize(
    ("options", "y", "message"),
    [
        ({"start": "ldaa"}, None, "unknown start 'ldaa': did you mean 'lda'"),
        ({"n_components": 99}, None, "n_components is 99; X has 16 features"),
        ({"n_components": 2.5}, None, "n_components is 2.5"),
        ({"n_components": 12, "start": "lda"}, None, "lda gives at most 11 directions .* n_components is 12"),
        ({"miner": "semihrd"}, None, "unknown miner 'semihrd': did you mean 'semihard'"),
        ({"epochs": 0}, None, "--epochs is 0; it must be at least 1"),
        ({"batch_size": 4}, None, "holds 1 identity of 4 images; two are needed"),
        ({"validation_fraction": 1.0}, None, "validation_fraction is 1.0"),
        ({}, [*range(94), 94, 94], "of 95 identities 1 have two samples or more"),
        ({}, np.arange(96) / 7, "Unknown label type: continuous"),
    ],
)
def test_what_cannot_be_learned_from_is_said(options: dict[str, Any], y: Any, message: str) -> None:
    X, labels = blobs()
    with pytest.raises(ValueError, match=message):
        TripletProjection(**options).fit(X, labels if y is None else y)


def test_vectors_are_those_of_the_embedder_for_all_kinds_of_pictures(
    embedder: FaceEmbedder, untrained: Path, faces: Path
) -> None:
    files, _ = paths_of(faces)
    files = files[:5]
    wanted = load_embedder(untrained).embed(files)
    arrays = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    frame = pd.DataFrame({"path": files})
    column = frame.to_numpy()
    for X in (
        files,
        np.array(files),
        frame["path"],
        frame,
        column,
        arrays,
        list(arrays),
        map(Image.open, files),
    ):
        np.testing.assert_array_equal(embedder.transform(X), wanted)
    flipped = FaceEmbedder(str(untrained), flip=True, device="cpu").fit_transform(files)
    np.testing.assert_array_equal(flipped, load_embedder(untrained).embed(files, flip=True))
    names = embedder.fit(files).get_feature_names_out()
    assert (len(names), names[0]) == (wanted.shape[1], "faceembedder0")


def test_faces_are_looked_for_where_the_weights_expect_them(own_weights: Path, faces: Path) -> None:
    amend_config(own_weights, pictures="faces")
    files, _ = paths_of(faces)
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    off = FaceEmbedder(str(own_weights), faces="off", device="cpu")
    assert len(off.transform(files[:2])) == 2
    with pytest.raises(DataError, match="no face"):
        FaceEmbedder(str(own_weights), faces="photographs", device="cpu").transform(noise)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ("a.jpg", r"X is 'a.jpg'; needed are several pictures, such as \['a.jpg'\]"),
        (7, "X is 7; needed are several pictures"),
        ([], "no images came"),
        (["gone.jpg"], r"gone.jpg: no such file"),
        (np.zeros((4, 3)), r"X is an array of shape \(4, 3\)"),
        (np.array([["a", "b"]]), r"X is of shape \(1, 2\); needed is one path a row"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), "X has 2 columns"),
    ],
)
def test_no_pictures_are_refused(embedder: FaceEmbedder, X: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embedder.transform(X)


def test_a_pipeline_from_paths_in_a_grid_search(embedder: FaceEmbedder, faces: Path, tmp_path: Path) -> None:
    files, names = paths_of(faces)
    pipeline = Pipeline(
        [
            ("embed", embedder),
            ("project", TripletProjection(epochs=2, random_state=0)),
            ("knn", KNeighborsClassifier(1)),
        ],
        memory=str(tmp_path / "memory"),
    )
    search = GridSearchCV(pipeline, {"project__margin": [0.1, 0.5], "project__n_components": [8, None]}, cv=3)
    search.fit(files, names)
    scores = search.cv_results_["mean_test_score"]
    assert len(scores) == 4
    assert scores.min() > 2 / 16  # chance is 1 / 16, and the weights are untrained
    assert search.predict(files[:3]).shape == (3,)
    # Without labels the same vectors go to any clustering of scikit-learn.
    assert len(set(make_pipeline(embedder, KMeans(3, n_init=1, random_state=0)).fit_predict(files))) == 3
    groups = GroupKFold(2).split(files, names, groups=names)
    assert all(set(names[a]).isdisjoint(names[b]) for a, b in groups)


def test_joblib_keeps_both_and_no_tensors(embedder: FaceEmbedder, faces: Path, tmp_path: Path) -> None:
    files, names = paths_of(faces)
    model = make_pipeline(embedder, TripletProjection(epochs=1, random_state=0)).fit(files, names)
    joblib.dump(model, tmp_path / "model.joblib")
    again = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(again.transform(files[:4]), model.transform(files[:4]))
    joblib.dump(model[0], tmp_path / "embedder.joblib")
    assert (tmp_path / "embedder.joblib").stat().st_size < 2000
    assert "_loaded" not in vars(clone(embedder))


def test_skops_keeps_both(embedder: FaceEmbedder, faces: Path, tmp_path: Path) -> None:
    skops = pytest.importorskip("skops.io", reason="skops is not installed")
    files, names = paths_of(faces)
    model = make_pipeline(embedder, TripletProjection(epochs=1, random_state=0)).fit(files, names)
    skops.dump(model, tmp_path / "model.skops")
    unknown = skops.get_untrusted_types(file=tmp_path / "model.skops")
    assert sorted(unknown) == ["facemetric.sklearn.FaceEmbedder", "facemetric.sklearn.TripletProjection"]
    again = skops.load(tmp_path / "model.skops", trusted=unknown)
    np.testing.assert_array_equal(again.transform(files[:4]), model.transform(files[:4]))


def test_other_weights_under_the_name_are_refused(own_weights: Path, stage_one: Trained, faces: Path) -> None:
    files, _ = paths_of(faces)
    model = FaceEmbedder(str(own_weights), device="cpu").fit(files)
    model.transform(files[:2])
    for name in ("config.json", "model.safetensors"):
        (own_weights / name).write_bytes((stage_one.weights / name).read_bytes())
    with pytest.raises(WeightsError, match=r"are others .* than those that fit saw"):
        model.transform(files[:2])
    with pytest.raises(WeightsError, match="no weights at 'gone'"):
        FaceEmbedder("gone").fit()
    with pytest.raises(ConfigError, match="device"):
        FaceEmbedder(str(own_weights), device="tpu").fit()


def test_the_module_does_not_hide_scikit_learn() -> None:
    code = (
        "import facemetric.sklearn, sklearn, sys\n"
        "assert sklearn is not facemetric.sklearn\n"
        "from sklearn.base import BaseEstimator\n"
        "assert issubclass(facemetric.sklearn.FaceEmbedder, BaseEstimator)\n"
        "print(sklearn.__name__, sklearn.__version__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    import sklearn

    assert done.stdout == f"sklearn {sklearn.__version__} False\n"
