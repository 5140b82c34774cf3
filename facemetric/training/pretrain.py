"""Stage one: a backbone learns identities with cross-entropy."""

from __future__ import annotations

import torch

from facemetric.config import PretrainConfig, config_toml
from facemetric.config.calls import takes_options
from facemetric.distributed import say
from facemetric.machine import pick_device
from facemetric.model.faster import check_compiler
from facemetric.training import peers
from facemetric.training.loop import fit
from facemetric.training.run.folder import check_run_folder
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import split_for
from facemetric.training.stage import check_training, keep_hashes
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.tasks.distillation import stage_one
from facemetric.training.tasks.label_noise import list_noise
from facemetric.training.validation import sum_up


@takes_options(PretrainConfig)
def pretrain(config: PretrainConfig) -> Trained:
    """Train a backbone on DATA with cross-entropy; the options are those of PretrainConfig.

    `pretrain("faces", arch="lcnet_050", epochs=20)` is `facemetric pretrain faces --arch lcnet_050 --epochs 20`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    with peers.joined(config.device) as name:
        return pretrain_on(pick_device(name), config)


def pretrain_on(device: torch.device, config: PretrainConfig) -> Trained:
    """pretrain, on a device."""
    check_run_folder(config.out, config.resume)
    setup = check_training(config)
    peers.same_program(config)
    if config.compile:
        check_compiler(device)
    toml = config_toml(config)
    with Run(config.out, config_toml=toml, resume=config.resume, track=config.track) as run:
        torch.manual_seed(config.seed)
        split = split_for(config)
        task = stage_one(setup, split, run, device)
        peers.same_data(task.origin)
        task.prepare()
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        at = fit(task, run, optimizer, scheduler, setup.settings, resume=run.resume)
        sum_up(run, split, task.open_set.embeddings, device, config.seed)
        finished = at.epoch == config.epochs  # not ended by --max-steps
        if finished:
            keep_hashes(run, task.index, config.weights, config.workers)
            list_noise(task.model, split.train, run.folder, task.workers)
        run.log("finished" if finished else "stopped", at.epoch * task.steps_per_epoch + at.step)
    metrics = at.best or {}
    judged = task.judge.score(metrics) is not None
    kept = (
        f"best epoch by {task.judge.figure(metrics)}: {at.best_epoch}"
        if judged
        else f"kept epoch {at.best_epoch}"
    )
    say(f"{kept}; weights in {run.best}")
    return Trained(run.folder, run.best, metrics)
