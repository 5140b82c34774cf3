"""The mean of several networks' weights, as one network: of runs that began at the same weights and were trained alike.

    python tools/average_weights.py RUN RUN... --out FOLDER

It costs nothing at test time. Whether it is better than each of them, the validation people must say. The mean was
trained on the images of all of them: the hashes of these go along. Source:
Wortsman et al. 2022, arXiv:2203.05482.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from facemetric.evaluation.audit.seen import join_training_images, read_training_images, write_training_images
from facemetric.model.weights.folder import find_weights, read_config
from facemetric.model.weights.save_load import load_embedder, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights", nargs="+", help="weights or run folders of one architecture")
    parser.add_argument("--out", type=Path, required=True, help="weights folder to write")
    options = parser.parse_args()
    first, *others = [load_embedder(name) for name in options.weights]
    mean = first.state_dict()
    for count, other in enumerate(others, start=2):
        state = other.state_dict()
        if [(name, value.shape) for name, value in state.items()] != [(n, v.shape) for n, v in mean.items()]:
            parser.error(
                f"{', '.join(options.weights)} are not of one network; give runs from the same weights"
            )
        for name, value in mean.items():
            if value.is_floating_point():
                value += (state[name] - value) / count
    if not all(torch.isfinite(value).all() for value in mean.values()):
        parser.error("the mean is not finite; look at the runs")
    first.load_state_dict(mean)
    provenance = read_config(find_weights(options.weights[0]))["facemetric"]["provenance"]
    names = [Path(name).name for name in options.weights]
    save_weights(options.out, first, provenance=provenance | {"mean_of": names}, metrics={})
    keep_hashes([find_weights(name) for name in options.weights], options.out)
    print(f"{options.out}: the mean of {', '.join(names)}")


def keep_hashes(folders: list[Path], out: Path) -> None:
    """The hashes of the training images of all of them, or a line that says why there are none."""
    found = [read_training_images(folder) for folder in folders]
    kept = [images for images in found if images is not None]
    if len(kept) == len(found) and all(np.array_equal(kept[0].medians, one.medians) for one in kept):
        write_training_images(out, join_training_images(kept))
        return
    why = (
        "not all have hashes of their training images"
        if len(kept) < len(found)
        else "their hashes differ in kind"
    )
    print(f"{why}: python tools/keep_training_images.py {out} --runs RUN... writes them")


if __name__ == "__main__":
    main()
