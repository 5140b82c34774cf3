"""The task of stage one with a teacher: a backbone follows its embeddings, beside or in place of the labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric import distributed
from facemetric.config import PretrainConfig
from facemetric.data.batches import ShuffledBatches
from facemetric.data.images import upload
from facemetric.data.index import ImageIndex
from facemetric.data.loader import Batch
from facemetric.machine import pick_workers
from facemetric.model.embedder import Embedder
from facemetric.model.heads import Head
from facemetric.model.sharded_head import ShardedHead
from facemetric.model.teacher import Student, first_layer
from facemetric.training.run.run import Run
from facemetric.training.split import Split
from facemetric.training.stage import Setup
from facemetric.training.step.readings import Figure
from facemetric.training.task import Backward
from facemetric.training.tasks.classification import MARGIN_GROWTH, Classification
from facemetric.training.tasks.following import first_features, mark_of, teacher_terms
from facemetric.training.tasks.teacher_rows import Joined, Teacher, teacher_rows


class Distillation(Classification):
    """The task of stage one with --teacher (see task.Task)."""

    model: Student

    def __init__(
        self,
        setup: Setup[PretrainConfig],
        split: Split,
        run: Run,
        device: torch.device,
        *,
        images: Joined,
        teacher_NT: np.ndarray,
    ) -> None:
        """`images` are those of the split and the unlabelled ones, `teacher_NT` the teacher's unit vectors of them."""
        self.images = images
        self.teacher = torch.from_numpy(teacher_NT)
        super().__init__(setup, split, run, device)

    def make_model(self, embedder: Embedder) -> Student:  # type: ignore[override]
        """The embedder, a head where labels count, and the layer to the teacher's embedding. With no size of its own
        asked for, the embedding is the teacher's."""
        config, size = self.config, self.teacher.shape[1]
        to_teacher: nn.Module = nn.Identity()
        before = embedder.folded_projection()  # of weights that followed a teacher before
        fits = isinstance(before, nn.Linear) and before.out_features == size
        self.first_projection = cast(nn.Linear, before) if fits else None
        if config.embedding_size == 0:
            embedder.projection, embedder.neck = nn.Linear(embedder.num_features, size), nn.Identity()
        else:
            to_teacher = nn.Linear(embedder.embedding_size, size)
        head = self.make_head(embedder) if config.label_weight else None
        if head is None:
            self.closed = None
            self.rows = np.arange(len(self.split.train))
        return Student(embedder, to_teacher, head)

    def prepare(self) -> None:
        """Fit the layer to the teacher's embedding to what trained weights see at first; then a margin head's
        centres."""
        if self.config.weights and not self.run.resume:
            embedder = self.model.embedder
            seen_NF, rows = self.first_features(embedder)
            if self.config.embedding_size == 0:
                fitted = first_layer(seen_NF, self.teacher[rows].to(seen_NF), self.first_projection)
                embedder.projection = fitted.to(self.device)
            else:
                with torch.no_grad():
                    seen_ND = functional.normalize(embedder.eval().project(seen_NF), dim=1)
                self.model.to_teacher = first_layer(seen_ND, self.teacher[rows].to(seen_ND)).to(self.device)
        super().prepare()

    def first_centres(self) -> Tensor | None:
        """Where a margin head starts: where the embedding is to be the teacher's own, at the identities' means by the
        teacher (see MarginDistillation, Svitov and Alyamkin 2020, arXiv:2003.02586, whose head keeps the teacher's
        centres), else as without one."""
        if self.config.embedding_size:
            return super().first_centres()
        train = self.split.train
        rows = self.rows[self.rows < len(train)]
        sums_CT = torch.zeros(len(train.identities), self.teacher.shape[1])
        sums_CT.index_add_(0, torch.from_numpy(train.identity[rows].astype(np.int64)), self.teacher[rows])
        return functional.normalize(sums_CT, dim=1)

    def first_features(self, embedder: Embedder) -> tuple[Tensor, np.ndarray]:
        """The backbone's features (N, F) of some images as they are, at the size of the first epoch, and their rows."""
        side = self.sizes[0]
        return first_features(
            embedder,
            self.index,
            replace(embedder.preprocess, size=(side, side)),
            seed=self.config.seed,
            workers=self.workers,
            bad_images=self.bad_images,
        )

    @property
    def index(self) -> ImageIndex:
        """All images that are trained on, labelled or not."""
        return cast(ImageIndex, self.images)

    def make_sampler(self) -> ShuffledBatches:
        """Labelled and unlabelled images, shuffled; each unlabelled one counts as a person of its own."""
        train, others = self.split.train, self.images.parts[1:]
        labels = with_others(train.select(self.rows), *others)
        self.rows = np.concatenate([self.rows, np.arange(len(train), len(self.images))])
        return self.sampler_of(labels)

    def step(self, batch: Batch, progress: float, backward: Backward) -> dict[str, Figure]:
        """The teacher's terms on every image, the cross-entropy on those with a label."""
        config, model = self.config, self.model
        images, labels = self.images_of(batch), upload(batch.labels, self.device)
        teacher = upload(self.teacher[batch.rows], self.device)
        count = distributed.total(images.new_full((), len(images)))  # of all processes
        labelled = distributed.total((labels >= 0).sum()).clamp_min(1)
        seen = []

        def loss_of(emb_BD: Tensor, rows: slice) -> Tensor:
            emb_BD = emb_BD.float()
            unit_BD = functional.normalize(emb_BD, dim=1)
            # The layer to the teacher's was fitted to unit vectors.
            led_BT = model.to_teacher(unit_BD if config.embedding_size else emb_BD)
            loss, parts = teacher_terms(config, led_BT, unit_BD, teacher[rows], len(emb_BD) / count)
            if model.head is not None:
                parts |= self.label_terms(emb_BD, batch.labels[rows], labelled, progress)
                loss = loss + config.label_weight * parts["cross_entropy"]
            seen.append({"loss": loss.detach()} | {name: part.detach() for name, part in parts.items()})
            return loss

        self.learn(images, loss_of, backward, apart=self.labels_apart and not config.relation_weight)
        figures = torch.stack([torch.stack(list(part.values())) for part in seen]).sum(0)
        return dict(zip(seen[0], distributed.total(figures), strict=True))

    def label_terms(
        self, emb_BD: Tensor, labels_B: Tensor, count: Tensor, progress: float
    ) -> dict[str, Tensor]:
        """These images' part of the mean cross-entropy and of the accuracy over the batch's `count` labelled images.

        The labels are still on the host, which so knows how many there are."""
        head = cast(Head | ShardedHead, self.model.head)
        known = (labels_B >= 0).nonzero()[:, 0]
        own_B = upload(labels_B[known], self.device)
        emb_BD = emb_BD[upload(known, self.device)]
        strength = min(1.0, progress / MARGIN_GROWTH)
        if isinstance(head, ShardedHead):
            found = head.cross_entropy(emb_BD, own_B, strength, self.config.label_smoothing)
            return {"cross_entropy": found.loss / count, "accuracy": found.right / count}
        logits = head(emb_BD).float()
        harder = head.with_margin(logits, own_B, strength, emb_BD=emb_BD)
        loss = functional.cross_entropy(
            harder, own_B, label_smoothing=self.config.label_smoothing, reduction="sum"
        )
        right = (logits.detach().argmax(1) == own_B).float().sum()
        return {"cross_entropy": loss / count, "accuracy": right / count}

    @property
    def origin(self) -> dict[str, str]:
        """Which data, pictures and teacher the run began with."""
        return super().origin | {"teacher": self.mark}

    @cached_property
    def mark(self) -> str:
        """Of the teacher's rows, which may be gigabytes."""
        return mark_of(self.teacher, self.images)


def stage_one(setup: Setup[PretrainConfig], split: Split, run: Run, device: torch.device) -> Classification:
    """The task of stage one that the options ask for. A teacher given as weights embeds the images first, once."""
    config = setup.config
    if not config.teacher:
        return Classification(setup, split, run, device)
    images = Joined(split.train, split.unlabelled)
    teacher = Teacher(config.teacher, config.out.parent / "teacher", pick_workers(config.workers), device)
    rows_NT = teacher_rows(teacher, images)
    return Distillation(setup, split, run, device, images=images, teacher_NT=rows_NT)


def with_others(labelled: ImageIndex, others: ImageIndex | None = None) -> np.ndarray:
    """Numbers for a sampler: the identities of the labelled images, then one of its own for each of the others."""
    count = len(others) if others is not None else 0
    return np.concatenate([labelled.identity, len(labelled.identities) + np.arange(count)])
