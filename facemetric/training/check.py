"""What of a stage's options can be known to be wrong before any image is read."""

from __future__ import annotations

from torch import nn

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig, check_stage
from facemetric.data.images import Preprocess
from facemetric.data.transforms import train_transform
from facemetric.mining.miners import resolve_miner
from facemetric.model.embedder import check_arch
from facemetric.training.classification import parse_arch_args
from facemetric.training.optim import make_optimizer, make_scheduler
from facemetric.training.setup import augment_of


def check_training(config: StageConfig) -> None:
    """Raise ConfigError for a number out of its range, or a name of something that is not there."""
    check_stage(config)
    train_transform(Preprocess(crop=config.crop), augment_of(config))
    make_scheduler(config, make_optimizer(config, [(nn.Linear(1, 1), 1.0)]), 1)
    if isinstance(config, FinetuneConfig):
        resolve_miner(config.miner)
    elif isinstance(config, PretrainConfig):
        parse_arch_args(config.arch_args)
        check_arch(config.arch)
