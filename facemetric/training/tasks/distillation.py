"""The task of stage one with a teacher: a backbone follows its embeddings, beside or in place of the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.config import PretrainConfig
from facemetric.data.batches import ShuffledBatches
from facemetric.data.index import ImageIndex
from facemetric.data.loader import Batch
from facemetric.machine import pick_workers
from facemetric.model.embedder import Embedder
from facemetric.model.heads import Head
from facemetric.model.teacher import Student, first_layer
from facemetric.training import distributed
from facemetric.training.run import Run
from facemetric.training.split import Split
from facemetric.training.stage import Setup
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

    def step(self, batch: Batch, progress: float, backward: Callable[[Tensor], None]) -> dict[str, float]:
        """The teacher's terms on every image, the cross-entropy on those with a label."""
        config, model = self.config, self.model
        emb_BD = self.embed(batch).float()
        teacher_BT = self.teacher[batch.rows].to(self.device)
        if config.embedding_size:  # the layer to the teacher's was fitted to unit vectors
            loss, parts = teacher_terms(
                config, model.to_teacher, functional.normalize(emb_BD, dim=1), teacher_BT
            )
        else:
            loss, parts = teacher_terms(config, model.to_teacher, emb_BD, teacher_BT)
        if model.head is not None:
            labelled = self.label_terms(emb_BD, batch.labels.to(self.device), progress)
            loss = loss + config.label_weight * labelled["cross_entropy"]
            parts |= labelled
        backward(loss)
        figures = torch.stack([loss.detach(), *(part.detach() for part in parts.values())])
        return dict(zip(["loss", *parts], distributed.total(figures).tolist(), strict=True))

    def label_terms(self, emb_BD: Tensor, labels_B: Tensor, progress: float) -> dict[str, Tensor]:
        """This process's part of the mean cross-entropy and of the accuracy over the batch's labelled images."""
        head = cast(Head, self.model.head)
        known = labels_B >= 0
        count = distributed.total(known.sum()).clamp_min(1)
        logits = head(emb_BD[known]).float()
        strength = min(1.0, progress / MARGIN_GROWTH)
        harder = head.with_margin(logits, labels_B[known], strength, emb_BD=emb_BD[known])
        loss = functional.cross_entropy(
            harder, labels_B[known], label_smoothing=self.config.label_smoothing, reduction="sum"
        )
        right = (logits.detach().argmax(1) == labels_B[known]).float().sum()
        return {"cross_entropy": loss / count, "accuracy": right / count}

    @property
    def origin(self) -> dict[str, str]:
        """Which data, pictures and teacher the run began with."""
        return super().origin | {"teacher": mark_of(self.teacher, self.images)}


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
