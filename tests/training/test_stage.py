"""The figures that validations share."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from facemetric.training.validation import keep_thresholds, spread_of


def test_thresholds_of_collapsed_embeddings_blame_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    emb_ND, label_N = np.ones((80, 4), np.float32), np.repeat(np.arange(20), 4).astype(str)
    keep_thresholds(None, SimpleNamespace(val=object()), emb_ND, label_N, 0)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "no threshold is stored: the embeddings have collapsed to nearly one point (spread 0.000)" in said
    for size in range(2, 65):  # rounding makes some of these rows longer than 1
        assert spread_of(np.full((80, size), 0.1, np.float32)) >= 0
