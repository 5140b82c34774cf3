"""Stage two on images, embedded in every step: in micro-batches where the batch is larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.config import FinetuneConfig
from facemetric.data.bad_images import note_bad
from facemetric.data.device_transforms import pixels_on
from facemetric.data.images import normalise, upload
from facemetric.data.loader import Batch, load_batches
from facemetric.errors import DataError
from facemetric.model.embedder import Embedder
from facemetric.model.freezing import freeze, training_mode, turn, widest
from facemetric.model.projections import LOOKING, sample_for, start_projection
from facemetric.training.run.run import Run
from facemetric.training.split import Split
from facemetric.training.stage import Setup
from facemetric.training.step.readings import Figure
from facemetric.training.task import Backward
from facemetric.training.tasks.chunks import backward_in_chunks, even_chunks
from facemetric.training.tasks.classification import identity_means
from facemetric.training.tasks.following import first_features
from facemetric.training.tasks.triplets import StageTwo, net_of
from facemetric.training.validation import OpenSet


class OnImages(StageTwo):
    """The projection and the batch norms, or everything, learn on images."""

    def __init__(
        self,
        setup: Setup[FinetuneConfig],
        embedder: Embedder,
        split: Split,
        run: Run,
        device: torch.device,
    ) -> None:
        super().__init__(setup, embedder, split, run, device)
        self.open_set = OpenSet(split.val, workers=self.workers, bad_images=self.bad_images)
        self.transform = setup.transform(embedder.preprocess)
        self.sampler = self.sampler_of(split.train.identity)
        self.steps_per_epoch = self.sampler.steps

    def prepare(self) -> None:
        """The projection that training starts from; refit, PCA and LDA run the backbone over all images once."""
        teacher_NT = self.read_teacher()
        self.embedder.projection = self.first_projection(self.embedder, teacher_NT).to(self.device)
        freeze(self.embedder, widest(self.config.freeze))  # the optimizer holds all that trains at any time
        self.embedder.to(memory_format=torch.channels_last)
        self.follow(teacher_NT)
        self.model = self.with_loss(self.embedder, self.identity_means)

    @torch.no_grad()
    def first_embeddings(self) -> tuple[Tensor, np.ndarray]:
        """Unit embeddings (N, D) of some images as training begins, and their rows among the teacher's."""
        features, rows = first_features(
            self.embedder,
            self.split.train,
            self.embedder.preprocess,
            seed=self.config.seed,
            workers=self.workers,
            bad_images=self.bad_images,
        )
        return functional.normalize(self.embedder.project(features).float(), dim=1), rows

    def first_projection(self, embedder: Embedder, teacher_NT: np.ndarray | None) -> nn.Linear:
        """Where the projection starts; refit, PCA and LDA need the features of the plain images, once."""
        config, index = self.config, self.split.train
        values, labels = np.empty((0, embedder.num_features), np.float32), np.empty(0, np.int32)
        rows = np.empty(0, np.int64)
        if config.projection_init in LOOKING:
            features = self.cached(index, 1)
            note_bad(self.bad_images, index, features.bad)
            rows = np.flatnonzero(features.valid)
            rows = rows[sample_for(config.projection_init, len(rows), config.seed)]
            values, labels = features.values[0][rows], index.identity[rows]
        return start_projection(
            config.projection_init,
            embedder,
            values,
            labels,
            size=config.embedding_size,
            seed=config.seed,
            how=self.refit_how,
            teacher_NT=None if teacher_NT is None else teacher_NT[rows],
        )

    @cached_property
    def start_figures(self) -> dict[str, float]:
        """The figures of stage one's own embedding."""
        return self.validate(self.original)

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return self.embedder.embedding_size

    def identity_means(self) -> Tensor:
        """Unit vectors (C, D) along the training identities' mean embeddings; this embeds all images once."""
        side = self.embedder.preprocess.size[0]
        return identity_means(self.embedder, self.split.train, side, self.workers)

    def parts(self) -> list[tuple[nn.Module, float]]:
        """What trains, with its learning rate."""
        rates = [
            (self.embedder.projection, self.config.lr),
            (self.embedder.backbone, self.config.backbone_lr),
        ]
        return [*rates, *self.parts_of_loss()]

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
            pin=self.device.type == "cuda",
        )

    def train_mode(self, epoch: int) -> None:
        """Put into training mode what trains in this epoch; a frozen batch norm stays as it is."""
        mode = turn(self.config.freeze, self.config.freeze_epochs, epoch)
        freeze(self.embedder, mode)
        training_mode(self.embedder, mode)

    def step(self, batch: Batch, progress: float, backward: Backward) -> dict[str, Figure]:
        """Embed, mine, backward; in chunks with --microbatch."""
        note_bad(self.bad_images, self.split.train, batch.bad)
        if len(batch.rows) < 2:
            raise DataError(f"a batch has {len(batch.rows)} readable images; see {self.bad_images.path}")
        images = pixels_on(batch, self.embedder.preprocess, self.device)
        labels = upload(batch.labels, self.device)
        figures: dict[str, Figure] = {}

        def embed(chunk: Tensor) -> Tensor:
            return self.embedder(normalise(chunk, self.embedder.preprocess, self.device))

        def loss_of(emb_BD: Tensor) -> Tensor:
            loss, found = self.objective(emb_BD, labels, batch.rows)
            figures.update(found)
            return loss

        chunks = even_chunks(images, self.config.microbatch)
        learned = [weight for module, _ in self.parts_of_loss() for weight in module.parameters()]
        backward_in_chunks(self.embedder, embed, loss_of, chunks, backward, lambda: learned)
        return figures

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Open-set figures of the embedder, and those of its triplets."""
        if self.split.val is None:
            return {}
        return self.with_triplets(*self.open_set.embeddings(net_of(model)))  # type: ignore[arg-type]

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """The embedder as the run's best weights."""
        self.save_embedder(net_of(model), metrics)  # type: ignore[arg-type]

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """The validation images, embedded."""
        return self.open_set.embeddings(embedder)
