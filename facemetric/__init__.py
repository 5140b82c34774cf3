"""facemetric: from a folder of faces to a verified identity embedding.

from facemetric import pretrain, finetune, evaluate, calibrate, verify, cluster, visualize, run, load_embedder
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "calibrate",
    "check_data",
    "cluster",
    "evaluate",
    "finetune",
    "load_embedder",
    "pretrain",
    "run",
    "verify",
    "visualize",
]

if TYPE_CHECKING:
    from facemetric.commands.calibrate import calibrate
    from facemetric.commands.check import check_data
    from facemetric.commands.cluster import cluster
    from facemetric.commands.eval import evaluate
    from facemetric.commands.run import run
    from facemetric.commands.verify import verify
    from facemetric.commands.visualize import visualize
    from facemetric.model.weights import load_weights as load_embedder
    from facemetric.training.finetune import finetune
    from facemetric.training.pretrain import pretrain

HOMES = {
    "calibrate": "facemetric.commands.calibrate",
    "check_data": "facemetric.commands.check",
    "cluster": "facemetric.commands.cluster",
    "evaluate": "facemetric.commands.eval",
    "finetune": "facemetric.training.finetune",
    "load_embedder": "facemetric.model.weights",
    "pretrain": "facemetric.training.pretrain",
    "run": "facemetric.commands.run",
    "verify": "facemetric.commands.verify",
    "visualize": "facemetric.commands.visualize",
}


def __getattr__(name: str) -> Any:
    # torch is imported when the first of these is used, not by `import facemetric`.
    if name not in HOMES:
        raise AttributeError(f"module 'facemetric' has no attribute {name!r}")
    home = importlib.import_module(HOMES[name])
    return getattr(home, "load_weights" if name == "load_embedder" else name)
