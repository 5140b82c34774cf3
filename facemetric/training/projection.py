"""Stage two on features that are in memory: what `finetune --freeze backbone` learns, without a run folder.

Shapes: N images, F features, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.config import FinetuneConfig, make_config
from facemetric.config.checks import check_batch
from facemetric.data.batches import IdentityBatches
from facemetric.errors import DataError, TrainingError
from facemetric.mining.losses import Loss, LossOptions, resolve_loss
from facemetric.training.run.best import Judge
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.validation import open_set_figures


@dataclass(frozen=True)
class Recipe:
    """The options of stage two on features, by the names and defaults of `finetune`; `margin` may be "soft"."""

    miner: str = "semihard"
    margin: float | str = 0.2
    distance: str = "squared"
    batch_size: int = 512
    images_per_identity: int = 4
    epochs: int = 20
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0

    def config(self) -> FinetuneConfig:
        """finetune's own options. Raises ConfigError for a number out of its range."""
        options = asdict(self)
        soft = options["margin"] == "soft"
        if soft:
            del options["margin"]
        config = make_config(FinetuneConfig, soft_margin=soft, **options)
        check_batch(config)
        return config

    def loss(self) -> Loss:
        """The miner's loss. Raises ConfigError for a miner or a distance that is not known."""
        options = LossOptions(self.miner, self.margin, self.distance, self.seed)  # type: ignore[arg-type]
        return resolve_loss("triplet", options)


class Examples(NamedTuple):
    """Features (N, F) float32 and labels (N,) of whole numbers."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Learned:
    """A projection F -> D, the mean loss of each epoch, and what the validation identities chose.

    `scores` (epochs + 1,) begin with the start's, () without validation; `best_epoch` 0 is the start."""

    projection: nn.Linear
    losses: tuple[float, ...]
    scores: tuple[float, ...]
    best_epoch: int


def learn_projection(
    train: Examples, start: nn.Linear, recipe: Recipe, validation: Examples | None = None
) -> Learned:
    """Learn `start` on with triplets of `train`, on the CPU; keep the epoch that parts the validation identities best,
    the start among them, or the last one without.

    The same steps as `finetune --freeze backbone`: with the same features, labels in the same order, start and seed it
    ends with the same weights. Rows whose label comes once take no part. Nothing random is drawn from a global state.
    Raises ConfigError for options, DataError where fewer than two identities have two images, TrainingError for a loss
    that is not finite."""
    config = recipe.config()
    loss_of = recipe.loss()
    train = with_positives(train)
    per_batch = min(config.batch_size // config.images_per_identity, len(train.labels.unique()))
    batches = IdentityBatches(train.labels.numpy(), per_batch, config.images_per_identity, config.seed)
    model = copy.deepcopy(start).train()
    optimizer = make_optimizer(config, [(model, config.lr)])
    scheduler = make_scheduler(config, optimizer, batches.steps)
    best, losses, step = Best(validation, model), [], 0
    for epoch in range(config.epochs):
        found = []
        for rows in batches.epoch(epoch):
            places = torch.from_numpy(rows)
            optimizer.zero_grad(set_to_none=True)
            emb_BD = functional.normalize(model(train.features[places]), dim=1)
            loss = loss_of(emb_BD, train.labels[places], seed=config.seed * 1_000_003 + step + 1).loss
            found.append(float(loss.detach()))
            if not np.isfinite(found[-1]):
                raise TrainingError(f"the loss is {found[-1]} in epoch {epoch + 1}; lower lr, or scale X")
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
            scheduler.step_update(step)
            optimizer.step()
            step += 1
        losses.append(float(np.mean(found)))
        best.look(model, epoch + 1)
    return Learned(best.model.eval(), tuple(losses), tuple(best.scores), best.epoch)


class Best:
    """The best projection so far by the validation's figure; without validation, the last one."""

    def __init__(self, validation: Examples | None, start: nn.Linear) -> None:
        self.validation, self.scores = validation, list[float]()
        self.best, self.epoch, self.model = -1.0, 0, start
        self.look(start, 0)

    @torch.inference_mode()
    def look(self, model: nn.Linear, epoch: int) -> None:
        """Measure a projection, and keep it where it is the best."""
        score = float("inf")
        if self.validation is not None:
            emb_ND = functional.normalize(model(self.validation.features), dim=1)
            figures = open_set_figures(emb_ND.numpy(), self.validation.labels.numpy())
            found = Judge().score(figures)
            assert found is not None  # validated
            score = found
            self.scores.append(score)
        if self.validation is None or score > self.best:
            self.best, self.epoch, self.model = score, epoch, copy.deepcopy(model)


def with_positives(examples: Examples) -> Examples:
    """The rows whose label comes twice or more. Raises DataError where fewer than two labels do."""
    _, place, count = examples.labels.unique(return_inverse=True, return_counts=True)
    kept = count[place] >= 2
    identities = int((count >= 2).sum())
    if identities < 2:
        raise DataError(
            f"of {len(count)} identities {identities} have two samples or more; a triplet needs two samples of one "
            "identity and one of another"
        )
    return Examples(examples.features[kept], examples.labels[kept])


def split_identities(labels_N: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to validate on: `share` of the identities with two images are held out whole, at random.

    Fewer than two to hold out, or to train on, hold out none."""
    names, count = np.unique(labels_N, return_counts=True)
    able = names[count >= 2]
    held = round(share * len(able))
    if held < 2 or len(able) - held < 2:
        return np.arange(len(labels_N)), np.empty(0, np.int64)
    picked = np.random.default_rng([seed, 17]).permutation(able)[:held]
    is_held = np.isin(labels_N, picked)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def as_examples(features_NF: np.ndarray, labels_N: Sequence[int] | np.ndarray) -> Examples:
    """Arrays as tensors of their own, features in float32."""
    return Examples(
        torch.from_numpy(np.array(features_NF, np.float32, order="C")),
        torch.from_numpy(np.array(labels_N, np.int64)),
    )
