"""Stage two: distances learn identity from online triplets.

With --freeze backbone only a linear projection learns, on features that were computed once (on_features.py);
otherwise images are embedded in every step (on_images.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from facemetric.config import FinetuneConfig, config_toml
from facemetric.config.calls import takes_options
from facemetric.data.lists import check_identities, with_at_least
from facemetric.files import write_whole
from facemetric.machine import pick_device
from facemetric.model.embedder import Embedder
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.loop import fit
from facemetric.training.optim import make_optimizer, make_scheduler
from facemetric.training.run import Run, Trained
from facemetric.training.split import Split, split_for
from facemetric.training.stage import check_training, load_start, settings_of
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages
from facemetric.training.validation import sum_up

SINGLES = "identities_with_one_image.txt"


@takes_options(FinetuneConfig)
def finetune(config: FinetuneConfig) -> Trained:
    """Fine-tune weights with triplets; the options are those of FinetuneConfig.

    `finetune("faces", weights="runs/pretrain", freeze="backbone")` is
    `facemetric finetune faces --weights runs/pretrain --freeze backbone`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    return run_finetune(config)


def run_finetune(config: FinetuneConfig) -> Trained:
    """finetune, from a config."""
    check_training(config)
    device = pick_device(distributed.start(config.device))
    embedder = load_start(config, device)
    run = Run(config.out, config_toml=config_toml(config), resume=config.resume)
    config = replace(config, resume=run.resume)
    try:
        torch.manual_seed(config.seed)
        split = with_pairs(split_for(config), run)
        task = task_of(config, embedder, split, run, device)
        optimizer = make_optimizer(config, task.parts())
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        # Process 0 measures for all, as in the loop.
        before = distributed.from_first(task.start_figures if distributed.rank() == 0 else {})
        if not config.resume:
            run.log("before", 0, **before)
        show("before stage two", before)
        at = fit(
            task, run, optimizer, scheduler, settings_of(config), resume=config.resume, validate_first=True
        )
        metrics = task.keep_better(before, at.best or {}, at.best_epoch)
        other = task.original if before and metrics is not before else None
        sum_up(run, split, task.embeddings, device, config.seed, before=other)
        run.log("finished", task.steps_per_epoch * config.epochs)
        return Trained(run.folder, run.best, metrics)
    finally:
        run.close()


def task_of(
    config: FinetuneConfig, embedder: Embedder, split: Split, run: Run, device: torch.device
) -> OnFeatures | OnImages:
    """The task of the options: on cached features where the backbone keeps still throughout."""
    kind = OnFeatures if config.freeze == ("backbone",) else OnImages
    return kind(config, embedder, split, run, device)


def show(what: str, figures: dict[str, float]) -> None:
    """One line of figures."""
    if figures:
        say(f"{what}  " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def with_pairs(split: Split, run: Run) -> Split:
    """The split without training identities of one image: they have no positive. Says how many, and lists them."""
    kept, left_out = with_at_least(split.train, 2)
    if left_out:
        path = run.folder / SINGLES
        # Names that are no UTF-8 are written with escapes.
        text = ("\n".join(left_out) + "\n").encode("utf-8", "backslashreplace")
        write_whole(path, lambda file: file.write_bytes(text))
        say(
            f"left out {len(left_out)} of {len(split.train.identities)} identities, which have one image: {path}"
        )
    check_identities(kept, allow_case_twins=True)
    return replace(split, train=kept)
