"""Hashes of training images beside weights that have none: those of a run that was stopped, or trained long ago.

    python tools/keep_training_images.py WEIGHTS --runs RUN...

A run that ends writes `training_images.npz` itself. Each RUN's config.toml names its data and lists (call this from
where the run was started: its paths may be relative); the images of all of them are hashed as a training does it,
those that were held back for validation left out, 8 bytes an image.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig
from facemetric.config.build import make_config, read_toml
from facemetric.data.index import ImageIndex
from facemetric.data.lists import with_at_least
from facemetric.errors import FacemetricError
from facemetric.evaluation.audit.seen import FILE, keep_training_images, read_training_images
from facemetric.machine import pick_workers
from facemetric.model.weights.folder import find_weights
from facemetric.training.run.folder import CONFIG
from facemetric.training.split import read_split
from facemetric.training.tasks.teacher_rows import Joined


def config_of(run: Path) -> StageConfig:
    """The options of a run, of either stage."""
    options = read_toml(run / CONFIG, remedy="; name the folder of a run")
    return make_config(PretrainConfig if "arch" in options else FinetuneConfig, **options)


def images_of(run: Path) -> ImageIndex | Joined:
    """The images that a run was trained on, with a name or without."""
    config = config_of(run)
    split = read_split(config)
    train = with_at_least(split.train, 2)[0] if isinstance(config, FinetuneConfig) else split.train
    return Joined(train, split.unlabelled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights", help="weights or run folder to write them to")
    parser.add_argument(
        "--runs", type=Path, nargs="+", required=True, help="run folders, the first stage's too"
    )
    parser.add_argument("--workers", type=int, default=-1, help="processes that read images")
    options = parser.parse_args()
    try:
        folder = find_weights(options.weights)
        indices = [images_of(run) for run in options.runs]
    except FacemetricError as error:
        parser.error(str(error))
    before = None
    for index in indices:
        whole = cast(ImageIndex, index)  # a Joined is read as an index is
        keep_training_images(folder, whole, before=before, workers=pick_workers(options.workers))
        before = read_training_images(folder)
    assert before is not None
    path = folder / FILE
    print(f"{path}: {len(before.hashes):,} hashes, {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
