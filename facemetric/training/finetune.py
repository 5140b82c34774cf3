"""Stage two: distances learn identity from online triplets.

With --freeze backbone only a linear projection learns, on features that were computed once; otherwise images
are embedded in every step, in micro-batches where the batch is larger than memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.config import FinetuneConfig, check_stage, config_toml, make_config
from facemetric.data.batches import IdentityBatches
from facemetric.data.identities import check_identities, with_at_least
from facemetric.data.images import normalise
from facemetric.data.index import ImageIndex
from facemetric.data.loader import BadImageLog, Batch, load_batches
from facemetric.data.transforms import train_transform
from facemetric.errors import ConfigError, DataError
from facemetric.files import write_whole
from facemetric.model.embedder import Embedder
from facemetric.model.freezing import freeze, training_mode, turn, widest
from facemetric.model.projections import sample_for, start_projection
from facemetric.model.weights import load_weights
from facemetric.training import distributed
from facemetric.training.calibration import sum_up
from facemetric.training.distributed import say
from facemetric.training.features import Features, cached_features, state_hash
from facemetric.training.loop import fit
from facemetric.training.microbatch import backward_in_chunks
from facemetric.training.objective import TripletObjective
from facemetric.training.pretrain import Trained
from facemetric.training.run import Run
from facemetric.training.setup import (
    SCORE,
    OpenSet,
    Split,
    augment_of,
    make_optimizer,
    make_scheduler,
    note_bad,
    open_set_figures,
    pick_device,
    pick_workers,
    read_split,
    same_origin,
    save_best,
    settings_of,
)

SINGLES = "identities_with_one_image.txt"


def finetune(*positional: Any, **options: Any) -> Trained:
    """Fine-tune weights with triplets; the options are those of FinetuneConfig.

    `finetune("faces", weights="runs/pretrain", freeze="backbone")` is
    `facemetric finetune faces --weights runs/pretrain --freeze backbone`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    return run_finetune(make_config(FinetuneConfig, *positional, **options))


def run_finetune(config: FinetuneConfig) -> Trained:
    """finetune, from a config."""
    check_stage(config)
    device = pick_device(distributed.start(config.device))
    embedder = load_weights(config.weights, device)
    run = Run(config.out, config_toml=config_toml(config), resume=config.resume)
    config = replace(config, resume=run.resume)
    try:
        torch.manual_seed(config.seed)
        split = with_pairs(read_split(config), run)
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


class StageTwo:
    """What the two tasks of stage two share (see loop.Task)."""

    score = SCORE

    def __init__(
        self, config: FinetuneConfig, embedder: Embedder, split: Split, run: Run, device: torch.device
    ) -> None:
        self.config, self.split, self.run, self.device = config, split, run, device
        self.workers = pick_workers(config.workers)
        total = len(split.train) + (len(split.val) if split.val is not None else 0)
        self.bad_images = BadImageLog(run.bad_images, total, config.max_bad)
        self.original = copy.deepcopy(embedder)  # stage one's embedder: kept where stage two does not help
        self.embedder = embedder
        self.objective = TripletObjective(
            config.miner,
            margin=config.margin,
            soft=config.soft_margin,
            distance=config.distance,
            memory=config.memory,
            seed=config.seed,
            run=run,
        )

    def sampler_of(self, labels: np.ndarray) -> IdentityBatches:
        """P x K batches over labels (N,); fewer identities than P make smaller batches, which is said."""
        identities = len(np.unique(labels))
        per_batch = self.config.batch_size // self.config.images_per_identity
        if per_batch < 2:
            raise ConfigError(
                f"--batch-size {self.config.batch_size} holds {per_batch} identities of "
                f"{self.config.images_per_identity} images; two are needed: raise --batch-size"
            )
        if per_batch > identities:
            say(f"batches of all {identities} identities: --batch-size asks for {per_batch}")
            per_batch = identities
        return IdentityBatches(
            labels,
            per_batch,
            self.config.images_per_identity,
            self.config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def with_triplets(self, emb_ND: np.ndarray, who_N: np.ndarray) -> dict[str, float]:
        """The open-set figures of validation embeddings, and the loss and the share of triplets that violate it."""
        figures = open_set_figures(emb_ND, who_N)
        labels = np.unique(who_N, return_inverse=True)[1]
        kept = np.flatnonzero(np.bincount(labels)[labels] >= 2)
        k = self.config.images_per_identity
        per_batch = min(self.config.batch_size // k, len(np.unique(labels[kept])))
        if per_batch >= 2:
            steps = IdentityBatches(labels[kept], per_batch, k, self.config.seed).epoch(0)
            unit = functional.normalize(torch.from_numpy(np.asarray(emb_ND)).float(), dim=1)
            batches = [
                (unit[rows], torch.from_numpy(labels[rows])) for rows in (kept[step] for step in steps)
            ]
            figures |= self.objective.measure(batches)
        return figures

    @cached_property
    def origin(self) -> dict[str, str]:
        """Which data and which weights it began with."""
        return {"data": self.split.fingerprint, "weights": state_hash(self.original)}

    def extra_state(self) -> dict[str, Any]:
        """The memory, and where the run began."""
        return self.objective.state_dict() | self.origin

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The memory, back again. Raises ConfigError for other data or other weights than the run began with."""
        same_origin(state, **self.origin)
        self.objective.load_state_dict(state)

    def cached(self, index: ImageIndex, cache: Path, views: int) -> Features:
        """The features of an index, and a line that says where they come from."""
        if distributed.rank() > 0:
            distributed.barrier()  # process 0 fills the cache, the others read it
        found = cached_features(
            self.embedder,
            index,
            cache,
            views=views,
            augment=augment_of(self.config),
            seed=self.config.seed,
            workers=self.workers,
        )
        if distributed.rank() == 0:
            distributed.barrier()
        shape = " x ".join(str(n) for n in found.values.shape)
        say(f"{'reused' if found.reused else 'cached'} features ({shape}) in {cache}")
        return found

    def save_embedder(self, embedder: Embedder, metrics: dict[str, float]) -> None:
        """Write an embedder as the run's best weights, in process 0."""
        save_best(self.run, embedder, self.split, self.config, metrics)

    def keep_better(self, before: dict[str, float], after: dict[str, float], epoch: int) -> dict[str, float]:
        """Keep the better of the weights before stage two and its best epoch, and say which."""
        if not before:
            say(f"no validation identities: kept the weights of the last epoch in {self.run.best}")
            return after
        old, new = before[self.score], after[self.score]
        if old > new:
            self.save_embedder(self.original, before)
            say(
                f"stage two did not help ({self.score} {new:.4f}, before {old:.4f}): kept the weights it began with"
            )
        else:
            moment = f"epoch {epoch}" if epoch else "the start of the projection"
            say(f"kept {moment}: {self.score} {new:.4f}, before stage two {old:.4f}")
        say(f"weights in {self.run.best}")
        self.run.log("kept", 0, epoch=epoch if new >= old else -1, before=old, after=new)
        return before if old > new else after


class OnFeatures(StageTwo):
    """The projection learns on cached features; the backbone does not run, and cannot change."""

    def __init__(
        self, config: FinetuneConfig, embedder: Embedder, split: Split, run: Run, device: torch.device
    ) -> None:
        super().__init__(config, embedder, split, run, device)
        cache = config.cache or config.out.parent / "features"
        features = self.cached(split.train, cache, config.views)
        note_bad(self.bad_images, split.train, features.bad)
        rows = np.flatnonzero(features.valid)
        labels = split.train.identity[rows].astype(np.int64)
        enough = np.bincount(labels, minlength=len(split.train.identities))[labels] >= 2
        self.rows, labels = rows[enough], labels[enough]
        self.values, self.labels = torch.from_numpy(np.asarray(features.values)), torch.from_numpy(labels)
        self.val: Features | None = None
        if split.val is not None:
            self.val = self.cached(split.val, cache, 1)
            note_bad(self.bad_images, split.val, self.val.bad)
        some = sample_for(config.projection_init, len(labels), config.seed)
        projection = start_projection(
            config.projection_init,
            embedder,
            features.values[0][self.rows[some]],
            labels[some],
            size=config.embedding_size,
            seed=config.seed,
        )
        self.model: nn.Module = projection.to(device)
        self.sampler = self.sampler_of(labels)
        self.steps_per_epoch = self.sampler.steps

    def parts(self) -> list[tuple[nn.Module, float]]:
        """What trains, with its learning rate."""
        return [(self.model, self.config.lr)]

    def batches(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places among the kept rows, view of each) of the steps of an epoch."""
        steps = self.sampler.epoch(epoch)
        for step in range(start, len(steps)):
            places = steps[step]
            views = np.random.default_rng([self.config.seed, epoch, step, 3]).integers(
                self.values.shape[0], size=len(places)
            )
            yield places, views

    def train_mode(self, epoch: int) -> None:
        """The projection trains."""
        self.model.train()

    def step(
        self, batch: tuple[np.ndarray, np.ndarray], progress: float, backward: Callable[[Tensor], None]
    ) -> dict[str, float]:
        """Project, mine, backward."""
        places, views = batch
        features = self.values[torch.from_numpy(views), torch.from_numpy(self.rows[places])].to(self.device)
        labels = self.labels[torch.from_numpy(places)].to(self.device)
        loss, figures = self.objective(functional.normalize(self.model(features).float(), dim=1), labels)
        backward(loss)
        return figures

    @torch.inference_mode()
    def figures_of(self, projection: nn.Module) -> dict[str, float]:
        """The open-set figures of a projection on the cached validation features."""
        if self.val is None:
            return {}
        return self.with_triplets(*self.val_embeddings(projection))

    @torch.inference_mode()
    def val_embeddings(self, projection: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) of the cached validation features, and identities (N,)."""
        assert self.val is not None
        assert self.split.val is not None
        rows = np.flatnonzero(self.val.valid)
        values = torch.from_numpy(np.asarray(self.val.values[0]))
        parts = [
            projection(values[chunk].to(self.device)).float().cpu()
            for chunk in np.array_split(rows, len(rows) // 4096 + 1)
        ]
        return torch.cat(parts).numpy(), self.split.val.identity[rows]

    @cached_property
    def start_figures(self) -> dict[str, float]:
        """The figures of stage one's own embedding."""
        return self.figures_of(self.original.folded_projection())

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Open-set figures of the projection."""
        return self.figures_of(model)

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """The frozen backbone with the projection, as the run's best weights."""
        self.embedder.projection = model
        self.save_embedder(self.embedder, metrics)

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """The validation images as weights on this backbone embed them: from the cached features."""
        return self.val_embeddings(embedder.folded_projection())


class OnImages(StageTwo):
    """The projection and the batch norms, or everything, learn on images."""

    def __init__(
        self, config: FinetuneConfig, embedder: Embedder, split: Split, run: Run, device: torch.device
    ) -> None:
        super().__init__(config, embedder, split, run, device)
        self.open_set = OpenSet(split.val, workers=self.workers, bad_images=self.bad_images)
        embedder.projection = self.first_projection(embedder).to(device)
        freeze(embedder, widest(config.freeze))  # the optimizer holds all that trains at any time
        self.model: nn.Module = embedder.to(memory_format=torch.channels_last)
        self.transform = train_transform(embedder.preprocess, augment_of(config))
        self.sampler = self.sampler_of(split.train.identity)
        self.steps_per_epoch = self.sampler.steps

    def first_projection(self, embedder: Embedder) -> nn.Linear:
        """Where the projection starts; PCA and LDA need the features of the plain images, once."""
        config, index = self.config, self.split.train
        values, labels = np.empty((0, embedder.num_features), np.float32), np.empty(0, np.int32)
        if config.projection_init in ("pca", "lda"):
            cache = config.cache or config.out.parent / "features"
            features = self.cached(index, cache, 1)
            note_bad(self.bad_images, index, features.bad)
            rows = np.flatnonzero(features.valid)
            rows = rows[sample_for(config.projection_init, len(rows), config.seed)]
            values, labels = features.values[0][rows], index.identity[rows]
        return start_projection(
            config.projection_init, embedder, values, labels, size=config.embedding_size, seed=config.seed
        )

    @cached_property
    def start_figures(self) -> dict[str, float]:
        """The figures of stage one's own embedding."""
        return self.validate(self.original)

    def parts(self) -> list[tuple[nn.Module, float]]:
        """What trains, with its learning rate."""
        return [(self.embedder.projection, self.config.lr), (self.embedder.backbone, self.config.backbone_lr)]

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """P x K batches of images."""
        return load_batches(
            self.split.train,
            self.sampler.epoch(epoch),
            self.transform,
            seed=self.config.seed,
            epoch=epoch,
            workers=self.workers,
            start=start,
        )

    def train_mode(self, epoch: int) -> None:
        """Put into training mode what trains in this epoch; a frozen batch norm stays as it is."""
        how = turn(self.config.freeze, self.config.freeze_epochs, epoch)
        freeze(self.embedder, how)
        training_mode(self.embedder, how)

    def step(self, batch: Batch, progress: float, backward: Callable[[Tensor], None]) -> dict[str, float]:
        """Embed, mine, backward; in chunks with --microbatch."""
        note_bad(self.bad_images, self.split.train, batch.bad)
        if len(batch.rows) < 2:
            raise DataError(f"a batch has {len(batch.rows)} readable images; see {self.bad_images.path}")
        images, labels = batch.images, batch.labels.to(self.device)
        figures: dict[str, float] = {}

        def embed(chunk: Tensor) -> Tensor:
            return self.embedder(normalise(chunk, self.embedder.preprocess, self.device))

        def loss_of(emb_BD: Tensor) -> Tensor:
            loss, found = self.objective(emb_BD, labels)
            figures.update(found)
            return loss

        chunk = self.config.microbatch or len(images)
        backward_in_chunks(self.model, embed, loss_of, images.split(chunk), backward)
        return figures

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Open-set figures of the embedder, and those of its triplets."""
        if self.split.val is None:
            return {}
        return self.with_triplets(*self.open_set.embeddings(model))  # type: ignore[arg-type]

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """The embedder as the run's best weights."""
        self.save_embedder(model, metrics)  # type: ignore[arg-type]

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """The validation images, embedded."""
        return self.open_set.embeddings(embedder)
