"""Stage one: a backbone learns identities with cross-entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from facemetric.config import PretrainConfig, config_toml, make_config
from facemetric.machine import pick_device
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.loop import fit
from facemetric.training.optim import make_optimizer, make_scheduler
from facemetric.training.run import Run, Trained
from facemetric.training.split import split_for
from facemetric.training.stage import check_training, settings_of
from facemetric.training.tasks.distillation import stage_one
from facemetric.training.validation import sum_up


def pretrain(*positional: Any, **options: Any) -> Trained:
    """Train a backbone on DATA with cross-entropy; the options are those of PretrainConfig.

    `pretrain("faces", arch="lcnet_050", epochs=20)` is `facemetric pretrain faces --arch lcnet_050 --epochs 20`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    return run_pretrain(make_config(PretrainConfig, *positional, **options))


def run_pretrain(config: PretrainConfig) -> Trained:
    """pretrain, from a config."""
    check_training(config)
    device = pick_device(distributed.start(config.device))
    run = Run(config.out, config_toml=config_toml(config), resume=config.resume)
    config = replace(config, resume=run.resume)
    try:
        torch.manual_seed(config.seed)
        split = split_for(config)
        task = stage_one(config, split, run, device)
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        at = fit(task, run, optimizer, scheduler, settings_of(config), resume=config.resume)
        sum_up(run, split, task.open_set.embeddings, device, config.seed)
        run.log("finished", task.steps_per_epoch * config.epochs)
    finally:
        run.close()
    say(f"best epoch {at.best_epoch}; weights in {run.best}")
    return Trained(run.folder, run.best, at.best or {})
