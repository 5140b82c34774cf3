"""The figures that validations share."""

from __future__ import annotations

import numpy as np

from facemetric.training.run_folder import judged_by
from facemetric.training.validation import open_set_figures


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
