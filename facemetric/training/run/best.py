"""The figure of a validation that picks the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from facemetric.config.training import BestBy

SCORE, AUC, EER = "val_tar_at_far_0.01", "val_auc", "val_eer"
# What --best-by says, and the validation's figure; `last` looks at none.
FIGURES = {
    "tar@0.01": SCORE,
    "tar@0.001": "val_tar_at_far_0.001",
    "eer": EER,
    "auc": AUC,
    "knn": "val_knn_accuracy",
}


class Judge(NamedTuple):
    """Compares validations by one figure: a TAR, EER, AUC, the nearest neighbours' accuracy, or none (`last`)."""

    by: BestBy = "tar@0.01"

    def figure(self, figures: Mapping[str, Any]) -> str:
        """The name of the figure among these; AUC where the validation pairs cannot support that FAR; "" of `last`."""
        name = FIGURES.get(self.by, "")
        return AUC if name.startswith("val_tar") and name not in figures else name

    def score(self, figures: Mapping[str, Any]) -> float | None:
        """The figure as a number, up is better; None without a validation, and of `last`."""
        name = self.figure(figures)
        if name not in figures:
            return None
        return -float(figures[name]) if name == EER else float(figures[name])
