"""The figure of a validation that picks the best epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from facemetric.config.training import BestBy

TAR, AUC, EER = "val_tar_at_far_0.01", "val_auc", "val_eer"
# What --best-by says, and the validation's figure; `last` looks at none.
FIGURES = {
    "tar@0.01": TAR,
    "tar@0.001": "val_tar_at_far_0.001",
    "eer": EER,
    "auc": AUC,
    "knn": "val_knn_accuracy",
}


class Judge(NamedTuple):
    """Compares validations by one figure: a TAR, EER, AUC, the nearest neighbours' accuracy, or none (`last`)."""

    by: BestBy = "tar@0.01"

    def figure(self, figures: Mapping[str, Any]) -> str:
        """The name of the figure among these; "" of `last`. Where the validation pairs cannot support a FAR of 1e-3, it
        is the TAR at 1e-2, and where not even this, AUC."""
        name = FIGURES.get(self.by, "")
        if not name.startswith("val_tar"):
            return name
        return next((tar for tar in (name, TAR) if tar in figures), AUC)

    def score(self, figures: Mapping[str, Any]) -> float | None:
        """The figure as a number, up is better; None without a validation, and of `last`."""
        name = self.figure(figures)
        if name not in figures:
            return None
        return -float(figures[name]) if name == EER else float(figures[name])

    def better(self, figures: Mapping[str, Any], than: Mapping[str, Any] | None) -> bool:
        """Whether weights with these figures take the place of others: their figure is better, or nothing compares
        them."""
        new, old = self.score(figures), None if than is None else self.score(than)
        return new is None or old is None or new > old
