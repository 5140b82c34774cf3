"""facemetric: from a folder of faces to a verified identity embedding.

from facemetric import pretrain, finetune, evaluate, visualize, load_embedder
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["evaluate", "finetune", "load_embedder", "pretrain", "visualize"]

if TYPE_CHECKING:
    from facemetric.model.weights import load_weights as load_embedder
    from facemetric.report.scorecard import evaluate
    from facemetric.report.visualize import visualize
    from facemetric.training.finetune import finetune
    from facemetric.training.pretrain import pretrain


def __getattr__(name: str) -> Any:
    # torch is imported when the first of these is used, not by `import facemetric`.
    if name == "pretrain":
        from facemetric.training.pretrain import pretrain as found
    elif name == "finetune":
        from facemetric.training.finetune import finetune as found  # type: ignore[assignment]
    elif name == "evaluate":
        from facemetric.report.scorecard import evaluate as found  # type: ignore[assignment]
    elif name == "visualize":
        from facemetric.report.visualize import visualize as found  # type: ignore[assignment]
    elif name == "load_embedder":
        from facemetric.model.weights import load_weights as found  # type: ignore[assignment]
    else:
        raise AttributeError(f"module 'facemetric' has no attribute {name!r}")
    return found
