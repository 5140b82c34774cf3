"""The figures that validations share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from facemetric.training.run.folder import judged_by
from facemetric.training.validation import keep_thresholds, open_set_figures, spread_of


def test_epochs_are_judged_by_auc_where_the_pairs_are_too_few() -> None:
    random = np.random.default_rng(0)
    emb_ND = random.normal(size=(8, 4))
    emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    few = open_set_figures(emb_ND, np.repeat(["a", "b", "c", "d"], 2))
    assert not [name for name in few if "tar" in name]
    assert judged_by(few) == "val_auc"
    many = open_set_figures(random.normal(size=(200, 4)), np.arange(200) // 4)
    assert judged_by(many) == "val_tar_at_far_0.01"
    assert many["val_tar_at_far_0.01"] != many["val_auc"]


def test_thresholds_of_collapsed_embeddings_blame_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    emb_ND, label_N = np.ones((80, 4), np.float32), np.repeat(np.arange(20), 4).astype(str)
    keep_thresholds(None, SimpleNamespace(val=object()), emb_ND, label_N, 0)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "no threshold is stored: the embeddings have collapsed to nearly one point (spread 0.000)" in said
    for size in range(2, 65):  # rounding makes some of these rows longer than 1
        assert spread_of(np.full((80, size), 0.1, np.float32)) >= 0
