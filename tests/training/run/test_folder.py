"""What a run folder holds, and the lines that are said of it."""

from __future__ import annotations

from facemetric.training.run.folder import COLUMNS, figures_line

FIGURES = {
    "val_tar_at_far_0.01": 0.30361,
    "val_tar_at_far_0.001": 0.12345,
    "val_eer": 0.16154,
    "val_auc": 0.92674,
    "val_knn_accuracy": 0.93754,
    "closed_set_accuracy": 0.87654,
    "val_loss": 0.07243,
    "val_fraction_positive": 0.59381,
}


def test_an_epochs_line_is_short() -> None:
    end = " *  12 h 05 min left"
    line = figures_line("epoch 100/100", FIGURES, end)
    assert len(line) <= COLUMNS == 120
    assert line.startswith(
        "epoch 100/100  TAR@0.01 0.3036  TAR@0.001 0.1235  EER 0.1615  AUC 0.9267  kNN 0.9375"
    )
    assert line.endswith(end)
    several = figures_line("epoch 1/2", {f"val_own_{i}": 1.0 for i in range(40)}, end)
    assert len(several) <= COLUMNS
    assert "val own 0 1" in several
