"""Stage two on images, embedded in every step: in micro-batches where the batch is larger than memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.config import FinetuneConfig
from facemetric.data.bad_images import note_bad
from facemetric.data.images import normalise
from facemetric.data.loader import Batch, load_batches
from facemetric.errors import DataError
from facemetric.model.embedder import Embedder
from facemetric.model.freezing import batch_norms, freeze, training_mode, turn, widest
from facemetric.model.projections import LOOKING, sample_for, start_projection
from facemetric.training.run import Run
from facemetric.training.split import Split
from facemetric.training.stage import Setup
from facemetric.training.tasks.classification import identity_means
from facemetric.training.tasks.following import first_features
from facemetric.training.tasks.triplets import StageTwo, net_of
from facemetric.training.validation import OpenSet


def backward_in_chunks(
    model: nn.Module,
    embed: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: Sequence[Tensor],
    backward: Callable[[Tensor], None],
    learned: Sequence[nn.Parameter] = (),
) -> None:
    """Accumulate the gradient of `loss_of(cat(embed(chunk) for chunk in chunks))` in the weights of `model`, and in
    those that the loss has `learned` itself.

    `embed` maps a chunk to embeddings (b, D) by `model`; `backward` is called with scalars whose gradients add
    up to it. One chunk is the ordinary single pass."""
    if len(chunks) == 1:
        backward(loss_of(embed(chunks[0])))
        return
    states, parts = [], []
    with torch.no_grad(), still_statistics(model):
        for chunk in chunks:
            states.append(random_state())
            parts.append(embed(chunk))
    torch.clear_autocast_cache()  # older ones keep weights that were cast without a graph, and use them below
    with torch.enable_grad():
        emb_BD = torch.cat(parts).requires_grad_()
        grad_BD, *grads = torch.autograd.grad(loss_of(emb_BD), [emb_BD, *learned], allow_unused=True)
        for weight, grad in zip(learned, grads, strict=True):
            if grad is not None:
                backward((weight * grad).sum())
        for chunk, state, grad in zip(
            chunks, states, grad_BD.split([len(part) for part in parts]), strict=True
        ):
            set_random_state(state)
            backward((embed(chunk) * grad).sum())


def even_chunks(images: Tensor, most: int) -> tuple[Tensor, ...]:
    """Images in as few chunks as hold at most `most`, alike in size; one more where a chunk had but one image,
    of which a batch norm has no variance. `most` 0 is one chunk."""
    count = len(images)
    return images.tensor_split(max(1, min(-(-count // (most or count)), count // 2)))


@contextlib.contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode still normalise by the batch, but their running statistics do not move."""
    norms = [norm for norm in batch_norms(model) if norm.training]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


State = tuple[Tensor, list[Tensor]]


def random_state() -> State:
    """The state of torch's generators, on the CPU and on every CUDA device in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_random_state(state: State) -> None:
    """Put the generators back."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


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
        self.embedder.projection = self.first_projection(self.embedder).to(self.device)
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

    def first_projection(self, embedder: Embedder) -> nn.Linear:
        """Where the projection starts; refit, PCA and LDA need the features of the plain images, once."""
        config, index = self.config, self.split.train
        values, labels = np.empty((0, embedder.num_features), np.float32), np.empty(0, np.int32)
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
            penalty=config.refit_penalty,
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
        )

    def train_mode(self, epoch: int) -> None:
        """Put into training mode what trains in this epoch; a frozen batch norm stays as it is."""
        mode = turn(self.config.freeze, self.config.freeze_epochs, epoch)
        freeze(self.embedder, mode)
        training_mode(self.embedder, mode)

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
            loss, found = self.objective(emb_BD, labels, batch.rows)
            figures.update(found)
            return loss

        chunks = even_chunks(images, self.config.microbatch)
        learned = [weight for module, _ in self.parts_of_loss() for weight in module.parameters()]
        backward_in_chunks(self.embedder, embed, loss_of, chunks, backward, learned)
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
