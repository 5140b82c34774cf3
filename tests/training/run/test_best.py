"""Which figure picks the best epoch."""

from __future__ import annotations

from typing import get_args

import numpy as np

from facemetric.config.training import BestBy
from facemetric.training.run.best import Judge
from facemetric.training.validation import open_set_figures


def test_epochs_are_judged_by_the_figure_that_is_asked_for() -> None:
    figures = {"val_tar_at_far_0.01": 0.5, "val_tar_at_far_0.001": 0.4, "val_eer": 0.3, "val_auc": 0.7}
    figures |= {"val_knn_accuracy": 0.6}
    assert Judge() == Judge("tar@0.01")
    found = {by: Judge(by).score(figures) for by in get_args(BestBy)}
    assert found == {
        "tar@0.01": 0.5,
        "tar@0.001": 0.4,
        "eer": -0.3,  # up is better
        "auc": 0.7,
        "knn": 0.6,
        "last": None,
    }
    assert {Judge(by).score({}) for by in get_args(BestBy)} == {None}


def test_the_nearest_tar_that_the_pairs_support_judges() -> None:
    figures = {"val_tar_at_far_0.01": 0.5, "val_auc": 0.7}
    assert Judge("tar@0.001").figure(figures) == "val_tar_at_far_0.01"
    assert Judge("tar@0.001").better(figures, {"val_tar_at_far_0.01": 0.4, "val_auc": 0.8})
    assert not Judge("tar@0.001").better(figures, figures)
    assert Judge("last").better({}, figures)


def test_epochs_are_judged_by_auc_where_the_pairs_are_too_few() -> None:
    random = np.random.default_rng(0)
    emb_ND = random.normal(size=(8, 4))
    emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    few = open_set_figures(emb_ND, np.repeat(["a", "b", "c", "d"], 2))
    assert not [name for name in few if "tar" in name]
    assert {Judge(by).figure(few) for by in ("tar@0.01", "tar@0.001", "auc")} == {"val_auc"}
    assert Judge().score(few) == few["val_auc"]
    many = open_set_figures(random.normal(size=(200, 4)), np.arange(200) // 4)
    assert Judge().figure(many) == "val_tar_at_far_0.01"
    assert many["val_tar_at_far_0.01"] != many["val_auc"]
