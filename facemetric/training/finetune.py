"""Stage two: distances learn identity from online triplets.

With --freeze backbone only a linear projection learns, on features that were computed once (tasks/on_features.py);
otherwise images are embedded in every step (tasks/on_images.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from facemetric import distributed
from facemetric.config import FinetuneConfig, config_toml
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex
from facemetric.data.lists import check_identities, with_at_least
from facemetric.distributed import say
from facemetric.errors import DataError, plural
from facemetric.files import write_bytes_whole
from facemetric.machine import pick_device
from facemetric.model.embedder import Embedder
from facemetric.model.faster import check_compiler
from facemetric.training import peers
from facemetric.training.loop import fit
from facemetric.training.run.folder import check_run_folder, figures_line
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import Split, split_for
from facemetric.training.stage import Setup, check_training, keep_hashes, load_start, warn_of_seen
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages
from facemetric.training.tasks.teacher_rows import Joined
from facemetric.training.validation import sum_up

SINGLES = "identities_with_one_image.txt"


@takes_options(FinetuneConfig)
def finetune(config: FinetuneConfig) -> Trained:
    """Fine-tune weights with triplets; the options are those of FinetuneConfig.

    `finetune("faces", weights="runs/pretrain", freeze="backbone")` is
    `facemetric finetune faces --weights runs/pretrain --freeze backbone`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    with peers.joined(config.device) as name:
        return finetune_on(pick_device(name), config)


def finetune_on(device: torch.device, config: FinetuneConfig) -> Trained:
    """finetune, on a device."""
    check_run_folder(config.out, config.resume)
    setup = check_training(config)
    peers.same_program(config)
    if config.compile:
        check_compiler(device)
    embedder = load_start(config, device)
    toml = config_toml(config)
    with Run(config.out, config_toml=toml, resume=config.resume, track=config.track) as run:
        torch.manual_seed(config.seed)
        split = with_pairs(split_for(config), run)
        warn_of_seen(config.weights, split.train if split.val is None else split.val, config.workers)
        task = task_of(setup, embedder, split, run, device)
        peers.same_data(task.origin)
        task.prepare()
        optimizer = make_optimizer(config, task.parts())
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        with distributed.work_shared():
            before = distributed.from_first(task.start_figures)
        if not run.resume:
            run.log("before", 0, **before)
        if before:
            say(figures_line("before stage two", before))
        at = fit(task, run, optimizer, scheduler, setup.settings, resume=run.resume, validate_first=True)
        metrics = task.keep_better(before, at.best or {}, at.best_epoch)
        other = task.original if before and metrics is not before else None
        sum_up(run, split, task.embeddings, device, config.seed, before=other)
        finished = at.epoch == config.epochs  # not ended by --max-steps
        if finished:
            images = cast(ImageIndex, Joined(split.train, split.unlabelled))
            keep_hashes(run, images, config.weights, config.workers)
        run.log("finished" if finished else "stopped", at.epoch * task.steps_per_epoch + at.step)
        return Trained(run.folder, run.best, metrics)


def task_of(
    setup: Setup[FinetuneConfig], embedder: Embedder, split: Split, run: Run, device: torch.device
) -> OnFeatures | OnImages:
    """The task of the options: on cached features where the backbone is frozen throughout."""
    kind = OnFeatures if setup.config.freeze == ("backbone",) else OnImages
    return kind(setup, embedder, split, run, device)


def with_pairs(split: Split, run: Run) -> Split:
    """The split without training identities of one image: they have no positive. Says how many, and lists them.

    Raises DataError where fewer than two identities are left."""
    kept, left_out = with_at_least(split.train, 2)
    total = plural(len(split.train.identities), "identity", "identities")
    if len(kept.identities) < 2:
        raise DataError(
            f"of {total} to train on {len(kept.identities)} have two images or more; a triplet needs two images of one "
            "identity and one of another: add images to two identities at least"
        )
    if left_out:
        path = run.folder / SINGLES
        # Names that are no UTF-8 are written with escapes.
        write_bytes_whole(path, ("\n".join(left_out) + "\n").encode("utf-8", "backslashreplace"))
        say(f"left out {len(left_out)} of {total}, which have one image: {path}")
    check_identities(kept, allow_case_twins=True)
    return replace(split, train=kept)
