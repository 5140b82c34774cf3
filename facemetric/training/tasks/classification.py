"""The task of stage one: a backbone and a head tell the training identities apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional

from facemetric import distributed
from facemetric.config import PretrainConfig, require
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.batches import ShuffledBatches
from facemetric.data.device_transforms import pixels_on
from facemetric.data.images import normalise, upload
from facemetric.data.index import ImageIndex
from facemetric.data.loader import Batch, load_batches
from facemetric.distributed import say
from facemetric.errors import DataError, plural
from facemetric.evaluation.embed import embed_index, images_of
from facemetric.machine import pick_workers
from facemetric.model.embedder import Embedder, check_backbone, in_pieces
from facemetric.model.heads import Head, MarginHead, make_head
from facemetric.model.sharded_head import ShardedHead
from facemetric.training.run.best import Judge
from facemetric.training.run.run import Run
from facemetric.training.split import Split, hold_back
from facemetric.training.stage import Setup, same_origin, save_best, start_embedder
from facemetric.training.step.readings import Figure
from facemetric.training.task import Backward
from facemetric.training.tasks.chunks import backward_in_chunks, even_chunks, one_by_one
from facemetric.training.validation import OpenSet

MARGIN_GROWTH = 1 / 3  # share of the training over which a margin grows to its full size
SIZE_GROWTH = 3 / 5  # share of the epochs with pictures below the full size, where they grow
SIZE_STEP = 16  # pixels; half the usual stride of backbones: less adds nothing to the last feature map


class Classifier(nn.Module):
    """An embedder and the head that it learns with."""

    def __init__(self, embedder: Embedder, head: Head | ShardedHead) -> None:
        super().__init__()
        self.embedder, self.head = embedder, head

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, C)."""
        return self.head(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> embeddings (B, D) before they are put on the unit sphere."""
        return self.embedder.project(self.embedder.features(images))


def growing_sizes(first: int, last: int, epochs: int) -> list[int]:
    """Side of the picture, pixels, in each epoch: equal numbers of epochs for each step from `first` to `last`.

    Small pictures first make the same training cheaper. Source: Tan and Le 2021, arXiv:2104.00298, section 4
    (progressive learning). Raises ConfigError where `first` is above `last`."""
    require(first <= last, f"--start-size is {first}, above the full size of {last}; lower it")
    smaller = list(range(first, last, SIZE_STEP)) if first else []
    return [
        smaller[int(share * len(smaller))]
        if (share := epoch / (SIZE_GROWTH * epochs)) < 1 and smaller
        else last
        for epoch in range(epochs)
    ]


def identity_means(embedder: Embedder, index: ImageIndex, side: int, workers: int) -> Tensor:
    """Unit vectors (C, D) along each identity's mean embedding, its images seen with `side` pixels.

    A margin head on trained weights starts from them. Source: Qi et al. 2018, arXiv:1712.07136, section 3.2
    (imprinted weights)."""
    full = embedder.preprocess
    embedder.preprocess = replace(full, size=(side, side))
    table = embed_index(embedder, index, workers=workers, progress="identities' means").table
    embedder.preprocess = full
    row = {name: i for i, name in enumerate(index.identities)}
    identity = torch.tensor([row[name] for name in table.identities.tolist()])
    sums_CD = torch.zeros(len(row), embedder.embedding_size)
    sums_CD.index_add_(0, identity, torch.from_numpy(table.embeddings))
    return functional.normalize(sums_CD, dim=1)


class Classification:
    """The task of stage one (see task.Task)."""

    model: Any  # a Classifier; a Student where a teacher is followed

    def __init__(self, setup: Setup[PretrainConfig], split: Split, run: Run, device: torch.device) -> None:
        self.setup, self.split, self.run, self.device = setup, split, run, device
        self.config = config = setup.config
        self.judge = Judge(config.best_by)
        self.workers = pick_workers(config.workers)
        embedder = start_embedder(setup)
        total = len(split.train) + (len(split.val) if split.val is not None else 0)
        self.bad_images = BadImageLog(run.bad_images, total, config.max_bad)
        self.open_set = OpenSet(split.val, workers=self.workers, bad_images=self.bad_images)
        self.sizes = growing_sizes(config.start_size, embedder.preprocess.size[0], config.epochs)
        if self.sizes[0] != self.sizes[-1]:
            check_backbone(embedder.backbone, embedder.arch, (self.sizes[0], self.sizes[0]))
        held = np.zeros(len(split.train), bool)
        if config.val_by == "identities":
            held = hold_back(split.train, config.closed_set_fraction, config.seed)
        self.rows = np.flatnonzero(~held)
        closed = split.train.select(held) if held.any() else None
        self.closed = split.val if config.val_by == "images" else closed
        self.model = self.make_model(embedder).to(device).to(memory_format=torch.channels_last)
        self.erase = (
            RandomErasing(config.random_erasing, mode="pixel", device=device)
            if config.random_erasing
            else None
        )
        self.sampler = self.make_sampler()
        self.steps_per_epoch = self.sampler.steps

    def make_model(self, embedder: Embedder) -> Classifier:
        """What trains."""
        return Classifier(embedder, self.make_head(embedder))

    def make_head(self, embedder: Embedder) -> Head | ShardedHead:
        """A new head for the training identities, this process's columns alone with --head-shards."""
        config = self.config
        make: Callable[..., Head | ShardedHead] = make_head
        if config.head_shards:
            make = partial(ShardedHead, sample=config.head_sample, seed=config.seed)
        return make(
            config.head,
            embedder.embedding_size,
            len(self.split.train.identities),
            scale=config.scale,
            margin=config.margin,
            arguments=self.setup.head_args,
        )

    def first_centres(self) -> Tensor | None:
        """Where a margin head starts: the identities' mean embeddings (C, D) on trained weights, else at random."""
        if not self.config.weights:
            return None
        train = self.split.train
        index = train.select(self.rows[self.rows < len(train)])
        say(
            f"embedding {plural(len(index), 'image')} once: the head starts from each identity's mean embedding"
        )
        return identity_means(self.model.embedder, index, self.sizes[0], self.workers)

    @property
    def index(self) -> ImageIndex:
        """All images that are trained on."""
        return self.split.train

    def make_sampler(self) -> ShuffledBatches:
        """Shuffled batches of the rows that are trained on."""
        return self.sampler_of(self.split.train.identity[self.rows])

    def sampler_of(self, labels: np.ndarray) -> ShuffledBatches:
        """Shuffled batches of rows of these identities, at most --max-per-identity of each in an epoch."""
        return ShuffledBatches(
            labels,
            min(self.config.batch_size, len(labels)),
            self.config.seed,
            cap=self.config.max_per_identity,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def prepare(self) -> None:
        """Where a margin head starts from trained weights or a teacher: this embeds the images once."""
        head = self.model.head
        starts = head.has_centres if isinstance(head, ShardedHead) else isinstance(head, MarginHead)
        if not starts or self.run.resume:
            return
        centre_CD = self.first_centres()
        if centre_CD is not None:
            head.start_from(centre_CD.to(self.device))

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Shuffled batches of the training images, of the epoch's size."""
        steps = Rows(self.sampler.epoch(epoch), self.rows)
        size = (self.sizes[epoch], self.sizes[epoch])
        preprocess = replace(self.model.embedder.preprocess, size=size)
        return load_batches(
            self.index,
            steps,
            self.setup.transform(preprocess),
            seed=self.config.seed,
            epoch=epoch,
            workers=self.workers,
            start=start,
            pin=self.device.type == "cuda",
        )

    def train_mode(self, epoch: int) -> None:
        """Everything trains."""
        self.model.train()

    def images_of(self, batch: Batch) -> Tensor:
        """Normalised images (B, 3, H, W) on the device, parts of which may be erased.

        Raises DataError where fewer than two of them could be read."""
        note_bad(self.bad_images, self.index, batch.bad)
        if len(batch.rows) < 2:
            raise DataError(f"a batch has {len(batch.rows)} readable images; see {self.bad_images.path}")
        pre = self.model.embedder.preprocess
        images = normalise(pixels_on(batch, pre, self.device), pre, self.device)
        return self.erase(images) if self.erase else images

    def step(self, batch: Batch, progress: float, backward: Backward) -> dict[str, Figure]:
        """Cross-entropy of a batch, behind the head's margin, and its accuracy without one."""
        images, labels = self.images_of(batch), upload(batch.labels, self.device)
        strength = min(1.0, progress / MARGIN_GROWTH)
        count = distributed.total(images.new_full((), len(images)))  # of all processes
        parts = []

        def loss_of(emb_BD: Tensor, rows: slice) -> Tensor:
            loss, right = self.label_loss(emb_BD, labels[rows], strength, count)
            parts.append(torch.stack([loss.detach(), right]))
            return loss

        self.learn(images, loss_of, backward, apart=self.labels_apart)
        mean, accuracy = distributed.total(torch.stack(parts).sum(0))
        return {"loss": mean, "accuracy": accuracy}

    def label_loss(
        self, emb_BD: Tensor, labels: Tensor, strength: float, count: Tensor
    ) -> tuple[Tensor, Tensor]:
        """These images' part of the mean cross-entropy, and of the accuracy, over the `count` images of all
        processes."""
        head, smoothing = self.model.head, self.config.label_smoothing
        if isinstance(head, ShardedHead):
            found = head.cross_entropy(emb_BD, labels, strength, smoothing)
            return found.loss / count, found.right / count
        logits = head(emb_BD).float()
        harder = head.with_margin(logits, labels, strength, emb_BD=emb_BD)
        loss = functional.cross_entropy(harder, labels, label_smoothing=smoothing)
        right = (logits.detach().argmax(1) == labels).float().mean()
        share = len(labels) / count
        return loss * share, right * share

    @property
    def labels_apart(self) -> bool:
        """Whether the cross-entropy of the batch is the sum of those of its parts."""
        head = self.model.head
        return head is None or (isinstance(head, Head) and not head.of_batch)

    def learn(
        self, images: Tensor, loss_of: Callable[[Tensor, slice], Tensor], backward: Backward, *, apart: bool
    ) -> None:
        """Backward of the loss of embeddings (b, D) of some rows of the batch, in micro-batches with --microbatch.

        `apart`: the loss of the batch is the sum of those of its parts. Else all embeddings are seen at once, and the
        micro-batches go through the network twice."""
        model, chunks = self.model, even_chunks(images, self.config.microbatch)
        if apart or len(chunks) == 1:
            one_by_one(model.embed, loss_of, chunks, backward)
            return
        rows = slice(0, len(images))
        backward_in_chunks(
            model.embedder,
            model.embed,
            lambda emb_BD: loss_of(emb_BD, rows),
            chunks,
            backward,
            lambda: beside_embedder(model),
        )

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        """All figures are for the log."""
        return figures

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Open-set figures, and the closed-set accuracy on held-back images of training identities."""
        figures = self.open_set(model.embedder)  # type: ignore[arg-type]
        if self.closed is not None:
            figures["closed_set_accuracy"] = self.closed_set_accuracy(model)
        return figures

    @torch.inference_mode()
    def closed_set_accuracy(self, model: nn.Module) -> float:
        """Share of the held-back images whose identity has the highest logit."""
        assert self.closed is not None
        numbers = {name: i for i, name in enumerate(self.split.train.identities)}
        label = np.array([numbers[name] for name in self.closed.identities])[self.closed.identity]
        model.eval()
        sharded = isinstance(model.head, ShardedHead)
        seen, found = [], []
        for rows, images, bad in images_of(model.embedder, self.closed, 256, self.workers, ""):  # type: ignore[arg-type]
            note_bad(self.bad_images, self.closed, bad)
            if len(rows):
                seen.append(label[rows])
                emb_or_logits = in_pieces(model.embed if sharded else model, images)  # type: ignore[arg-type]
                found.append(emb_or_logits.float() if sharded else emb_or_logits.argmax(1))
        label_N = torch.from_numpy(np.concatenate(seen or [np.empty(0, label.dtype)]))
        if sharded:
            none = torch.empty(0, model.embedder.embedding_size, device=self.device)  # type: ignore[union-attr, arg-type]
            found = [model.head.identify(torch.cat([none, *found]))]  # type: ignore[operator, union-attr]
        right = int((torch.cat(found).cpu() == label_N).sum()) if found else 0
        counts = torch.tensor([right, len(label_N)])
        right, count = (distributed.total(counts) if distributed.workers() > 1 else counts).tolist()
        return right / count if count else float("nan")

    @property
    def origin(self) -> dict[str, str]:
        """Which data, and size and crop of the pictures, the run began with."""
        return self.split.origin._asdict() | {"picture": str(self.model.embedder.preprocess)}

    def extra_state(self) -> dict[str, Any]:
        """Which data and pictures it is."""
        return self.origin

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Raises ConfigError for other data, or the same split otherwise."""
        same_origin(self.run, state, self.origin)

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """The embedder as the run's best weights."""
        others = len(self.index) - len(self.split.train)
        save_best(self.run, model.embedder, self.split, self.config, metrics, unlabelled=others)  # type: ignore[arg-type]


def beside_embedder(model: Any) -> list[nn.Parameter]:
    """What learns beside an embedder: of a head that drew a sample, the sample."""
    own = {id(weight) for weight in model.embedder.parameters()}
    drawn = {id(each.whole): each.part for each in getattr(model.head, "drawn", ())}
    return [drawn.get(id(weight), weight) for weight in model.parameters() if id(weight) not in own]


class Rows(Sequence[np.ndarray]):
    """The steps of a sampler over some rows of an index, as rows of the index."""

    def __init__(self, steps: Sequence[np.ndarray], rows: np.ndarray) -> None:
        self.steps, self.rows = steps, rows

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]
        return self.rows[self.steps[step]]
