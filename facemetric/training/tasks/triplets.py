"""What stage two trains with, on features or on images: batches of identities, triplets, figures, what is kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric import distributed
from facemetric.config import FinetuneConfig
from facemetric.data.bad_images import BadImageLog
from facemetric.data.batches import IdentityBatches
from facemetric.data.index import ImageIndex
from facemetric.distributed import say
from facemetric.machine import pick_workers
from facemetric.mining.kernels import choice
from facemetric.model.embedder import Embedder
from facemetric.model.projections import Refit
from facemetric.training.run.best import Judge
from facemetric.training.run.run import Run
from facemetric.training.split import Split
from facemetric.training.stage import Setup, same_origin, save_best
from facemetric.training.tasks.feature_cache import Features, cached_features, state_hash
from facemetric.training.tasks.following import Following
from facemetric.training.tasks.objective import Objective
from facemetric.training.tasks.teacher_rows import Joined, Teacher, teacher_rows
from facemetric.training.validation import open_set_figures


class WithLoss(nn.Module):
    """A network, and what learns beside it (of the loss, and the layer to a teacher's embedding): all are trained and
    kept in checkpoints, the network alone is validated and saved."""

    def __init__(self, net: nn.Module, loss: nn.Module | None, to_teacher: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.loss, self.to_teacher = net, loss, to_teacher

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives."""
        found: Tensor = self.net(x)
        return found


def net_of(model: nn.Module) -> nn.Module:
    """The network of a model that may hold a loss as well."""
    return model.net if isinstance(model, WithLoss) else model


class StageTwo:
    """What the two tasks of stage two share (see task.Task)."""

    def __init__(
        self,
        setup: Setup[FinetuneConfig],
        embedder: Embedder,
        split: Split,
        run: Run,
        device: torch.device,
    ) -> None:
        self.setup, self.split, self.run, self.device = setup, split, run, device
        self.config = config = setup.config
        self.judge = Judge(config.best_by)
        self.workers = pick_workers(config.workers)
        parts = (split.train, split.val, split.unlabelled)
        total = sum(len(part) for part in parts if part is not None)
        self.bad_images = BadImageLog(run.bad_images, total, config.max_bad)
        self.original = copy.deepcopy(embedder)  # stage one's embedder: kept where stage two does not help
        self.embedder = embedder
        assert setup.loss is not None
        self.objective = Objective(config, setup.loss, run)
        reason = choice.why_not_fused(device, torch.float32)
        if reason is not None and choice.is_gpu(device) and config.loss == "triplet":
            say(f"triplets are mined by plain torch, not by the fused kernels: {reason}")

    def read_teacher(self) -> np.ndarray | None:
        """What the teacher says of every image (N, T), the unlabelled ones last; None where none is followed."""
        config = self.config
        if not config.teacher:
            return None
        teacher = Teacher(config.teacher, config.out.parent / "teacher", self.workers, self.device)
        return teacher_rows(teacher, self.images)

    @property
    def refit_how(self) -> Refit:
        """What the options say of a refit."""
        config = self.config
        return Refit(config.refit_penalty, config.refit_teacher, config.refit_constant)

    @property
    def images(self) -> Joined:
        """All images that are trained on."""
        return Joined(self.split.train, self.split.unlabelled)

    def follow(self, teacher_NT: np.ndarray | None) -> None:
        """Have the objective follow these rows, through a layer that is fitted to some images first."""
        if teacher_NT is None:
            return
        following = Following(self.config, self.images, teacher_NT, self.embedding_size)
        if not self.run.resume:
            following.fit(*self.first_embeddings())
        following.to_teacher.to(self.device)
        self.objective.following = following

    def first_embeddings(self) -> tuple[Tensor, np.ndarray]:
        """Unit embeddings (N, D) of some images as training begins, and their rows among the teacher's."""
        raise AssertionError("a task of stage two knows it")

    def with_loss(self, net: nn.Module, means_of: Callable[[], Tensor]) -> nn.Module:
        """The network, with what the loss learns beside it where it does, and the layer to a teacher's embedding.

        Where the loss has `start_from`, it is given the training identities' mean embeddings (C, D) of `means_of`."""
        loss = self.objective.loss
        loss.prepare(self.identities, self.embedding_size)
        following = self.objective.following
        if loss.weights is None:
            return net if following is None else WithLoss(net, None, following.to_teacher)
        loss.weights.to(self.device)
        start = getattr(loss.weights, "start_from", None)
        if start is not None and not self.run.resume:
            start(means_of().to(self.device))
        return WithLoss(net, loss.weights, following.to_teacher if following is not None else None)

    @property
    def identities(self) -> int:
        """How many labels there are."""
        return len(self.split.train.identities)

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding of the network that trains."""
        raise AssertionError("a task of stage two knows it")

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        """Show the doctor a step's figures; return those for the log."""
        return self.objective.watch(figures)

    def parts_of_loss(self) -> list[tuple[nn.Module, float]]:
        """What learns beside the network, with its learning rate: the loss's weights, the layer to the teacher's."""
        weights, following = self.objective.loss.weights, self.objective.following
        parts: list[tuple[nn.Module, float]] = [] if weights is None else [(weights, self.config.loss_lr)]
        return parts if following is None else [*parts, (following.to_teacher, self.config.lr)]

    def sampler_of(self, labels: np.ndarray) -> IdentityBatches:
        """P x K batches over labels (N,). Says where they are smaller than --batch-size."""
        identities = len(np.unique(labels))
        size, k = self.config.batch_size, self.config.images_per_identity
        per_batch = size // k
        if per_batch > identities:
            say(
                f"batches of all {identities} identities: --batch-size {size} asks for {per_batch}, with {k} images "
                "of each"
            )
            per_batch = identities
        elif size % k:
            say(
                f"batches of {per_batch * k} images, {per_batch} identities x {k}: --batch-size {size} is no multiple "
                f"of --images-per-identity"
            )
        return IdentityBatches(
            labels,
            per_batch,
            k,
            self.config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def with_triplets(self, emb_ND: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
        """The open-set figures of validation embeddings, and the loss and the share of triplets that violate it."""
        figures = open_set_figures(emb_ND, label_N)
        labels = np.unique(label_N, return_inverse=True)[1]
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

    @property
    def origin(self) -> dict[str, str]:
        """Which data, split, weights, and size and crop of the pictures it began with; once prepared, which teacher."""
        unlabelled, following = self.split.unlabelled, self.objective.following
        return {
            **self.split.origin._asdict(),
            "weights": self.original_hash,
            "picture": str(self.original.preprocess),
            **({"unlabelled": unlabelled.fingerprint} if unlabelled is not None else {}),
            **({"teacher": following.mark} if following is not None else {}),
        }

    @cached_property
    def original_hash(self) -> str:
        """Of the weights that it began with."""
        return state_hash(self.original)

    def extra_state(self) -> dict[str, Any]:
        """The memory, and where the run began."""
        return self.objective.state_dict() | self.origin

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """The memory, back again. Raises ConfigError for other data, weights or pictures than the run began with."""
        same_origin(self.run, state, self.origin)
        self.objective.load_state_dict(state)

    def cached(self, index: ImageIndex, views: int) -> Features:
        """The features of an index, and a line that says where they are kept."""
        cache = self.config.cache or self.config.out.parent / "features"
        with distributed.work_shared():
            found = cached_features(
                self.embedder,
                index,
                cache,
                views=views,
                augment=self.setup.augment,
                seed=self.config.seed,
                workers=self.workers,
            )
        shape = " x ".join(str(n) for n in found.values.shape)
        say(
            f"{'reused' if found.reused else 'cached'} features ({shape}) in {cache}, which stays for the next run; "
            "remove it when you like"
        )
        return found

    def save_embedder(self, embedder: Embedder, metrics: dict[str, float]) -> None:
        """Write an embedder as the run's best weights, in process 0."""
        save_best(self.run, embedder, self.split, self.config, metrics)

    def keep_better(self, before: dict[str, float], after: dict[str, float], epoch: int) -> dict[str, float]:
        """Keep the better of the weights before stage two and its best epoch, and say which; of `--best-by last` the
        last epoch, better or not."""
        if not before:
            say(f"no validation identities: kept the weights of the last epoch in {self.run.best}")
            return after
        last = self.judge.by == "last"
        judge = Judge() if last else self.judge  # both ends are told by a figure all the same
        score = judge.figure(before)
        old, new = before[score], after[score]
        worse = not last and judge.better(before, than=after)
        if worse:
            self.save_embedder(self.original, before)
            say(
                f"stage two did not help ({score} {new:.4f}, before {old:.4f}): kept the weights it began with"
            )
        else:
            moment = f"epoch {epoch}" if epoch else "the start of the projection"
            if last:
                moment = "the last epoch, as --best-by last asks"
            say(f"kept {moment}: {score} {new:.4f}, before stage two {old:.4f}")
        say(f"weights in {self.run.best}")
        self.run.log("kept", 0, epoch=-1 if worse else epoch, before=old, after=new)
        return before if worse else after
