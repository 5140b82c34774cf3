"""facemetric: from a folder of faces to a verified identity embedding.

    import facemetric as fm

    embedder = fm.load_embedder("faces-112")
    vectors = embedder.embed(["a.jpg", "b.jpg"])       # (2, 256) float32, unit length
    fm.similarity(vectors, vectors)                    # cosine, (2, 2)
    fm.Verifier("faces-112", far=1e-3)("a.jpg", "b.jpg").same
    fm.Gallery("staff").identify("party.jpg").names

    fm.pretrain("faces", arch="lcnet_050", out="runs/one")
    fm.evaluate("runs/one", pairs="pairs.csv")

`dir(facemetric)` lists what is public. Nothing is printed but by the command line; `show_progress()` changes that.
Types and signatures for editors and type checkers are in `__init__.pyi`.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

# Where each public name is; torch is imported when the first that needs it is used, not by `import facemetric`.
HOMES = {
    # commands
    "align": "facemetric.commands.align",
    "calibrate": "facemetric.commands.calibrate",
    "check_data": "facemetric.commands.checking.check",
    "convert_data": "facemetric.commands.convert",
    "cluster": "facemetric.commands.clustering.cluster",
    "embed": "facemetric.commands.vectors.embed",
    "evaluate": "facemetric.commands.evaluating.eval",
    "export": "facemetric.commands.export",
    "finetune": "facemetric.training.finetune",
    "identify": "facemetric.commands.identifying.identify",
    "pretrain": "facemetric.training.pretrain",
    "push": "facemetric.commands.push",
    "run": "facemetric.commands.run",
    "verify": "facemetric.commands.verify",
    "visualize": "facemetric.commands.visualize",
    # models
    "Embedder": "facemetric.model.embedder",
    "Gallery": "facemetric.gallery.gallery",
    "OnnxEmbedder": "facemetric.model.onnx.embedder",
    "Verifier": "facemetric.commands.verify",
    "load_embedder": "facemetric.model.weights.save_load",
    "similarity": "facemetric.model.similarity",
    # what commands return
    "Aligned": "facemetric.commands.align",
    "Calibrated": "facemetric.commands.calibrate",
    "Checked": "facemetric.commands.checking.checked",
    "Clustered": "facemetric.commands.clustering.cluster",
    "Converted": "facemetric.commands.convert",
    "EmbeddedFile": "facemetric.commands.vectors.embed",
    "EmbeddingTable": "facemetric.evaluation.table",
    "Evaluation": "facemetric.report.record",
    "Exported": "facemetric.commands.export",
    "Identified": "facemetric.commands.identifying.identify",
    "Pushed": "facemetric.commands.push",
    "Trained": "facemetric.training.run.run",
    "Verdict": "facemetric.commands.verify",
    # options
    "AlignConfig": "facemetric.config",
    "CalibrateConfig": "facemetric.config",
    "CheckConfig": "facemetric.config",
    "ClusterConfig": "facemetric.config",
    "ConvertConfig": "facemetric.config",
    "EmbedConfig": "facemetric.config",
    "EvalConfig": "facemetric.config",
    "ExportConfig": "facemetric.config",
    "FinetuneConfig": "facemetric.config",
    "IdentifyConfig": "facemetric.config",
    "PretrainConfig": "facemetric.config",
    "PushConfig": "facemetric.config",
    "RunConfig": "facemetric.config",
    "VerifyConfig": "facemetric.config",
    "VisualizeConfig": "facemetric.config",
    # errors
    "ConfigError": "facemetric.errors",
    "DataError": "facemetric.errors",
    "FacemetricError": "facemetric.errors",
    "TrainingError": "facemetric.errors",
    "WeightsError": "facemetric.errors",
    # the terminal
    "show_progress": "facemetric.machine",
}
__all__ = ["__version__", *HOMES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("facemetric")
    if name not in HOMES:
        raise AttributeError(f"module 'facemetric' has no attribute {name!r}")
    module, _, own_name = HOMES[name].partition(":")
    return getattr(importlib.import_module(module), own_name or name)


def __dir__() -> list[str]:
    return sorted(__all__)
