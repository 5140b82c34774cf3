"""The weights of a run that was stopped inside an epoch, from its checkpoint: the moving average where there is one.

    python tools/unfinished_weights.py RUN --out FOLDER

The run's own `best` holds the best epoch that was validated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from facemetric.model.weights.folder import find_weights, read_config
from facemetric.model.weights.save_load import load_embedder, save_weights
from facemetric.training.run.folder import CHECKPOINT

PART = "embedder."  # of the names in a checkpoint of stage one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("run", type=Path, help="run folder of stage one")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    options = parser.parse_args()
    state = torch.load(options.run / CHECKPOINT, map_location="cpu", weights_only=True)
    embedder = load_embedder(options.run)
    kept = state["ema"] or state["model"]
    own = {name.removeprefix(PART): value for name, value in kept.items() if name.startswith(PART)}
    if not own:
        parser.error(f"{options.run} is no run of stage one; its checkpoint has no embedder")
    if any(name.startswith("neck.") for name in own):  # saved weights have it in their projection
        embedder.neck = nn.BatchNorm1d(embedder.embedding_size)
    embedder.load_state_dict(own)
    embedder.eval()
    provenance = dict(read_config(find_weights(options.run))["facemetric"]["provenance"])
    provenance["steps"] = state["progress"]["epoch"] * state["steps_per_epoch"] + state["progress"]["step"]
    save_weights(options.out, embedder, provenance=provenance, metrics={})
    print(f"{options.out}: after {provenance['steps']:,} steps of {options.run}")
    print(
        f"hashes of its training images: python tools/keep_training_images.py {options.out} --runs {options.run}"
    )


if __name__ == "__main__":
    main()
