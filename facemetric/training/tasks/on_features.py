"""Stage two on cached features of a frozen backbone: only a linear projection learns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric import distributed
from facemetric.data.bad_images import note_bad
from facemetric.data.images import upload
from facemetric.data.lists import read_families
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.table import unit_rows
from facemetric.model.embedder import Embedder
from facemetric.model.projections import sample_for, start_projection
from facemetric.training.step.readings import Figure
from facemetric.training.task import Backward
from facemetric.training.tasks.feature_cache import Features
from facemetric.training.tasks.following import first_rows
from facemetric.training.tasks.triplets import StageTwo, net_of

# Candidates for each place of a group: the nearest ones may be in another group already.
CANDIDATES = 2
STRANGER_VIEWS = 3  # of an unlabelled image, which has no other positives


class OnFeatures(StageTwo):
    """The projection learns on cached features; the backbone does not run, and cannot change.

    `prepare` runs the backbone over all images, or reads what an earlier run kept, and sets what depends on it."""

    family_C: np.ndarray | None = None  # of each training identity, with --families

    def prepare(self) -> None:
        """The features of all images, the projection that starts from them, and the batches of images that can be
        read."""
        config, split = self.config, self.split
        teacher_NT = self.read_teacher()  # first: what it lacks is told before the backbone runs
        if config.families is not None:
            self.family_C, note = read_families(split.train, config.families)
            distributed.say(note)
        features = self.cached(split.train, config.views)
        note_bad(self.bad_images, split.train, features.bad)
        rows = np.flatnonzero(features.valid)
        labels = split.train.identity[rows].astype(np.int64)
        enough = np.bincount(labels, minlength=len(split.train.identities))[labels] >= 2
        self.rows, labels = rows[enough], labels[enough]
        self.values, self.labels = torch.from_numpy(np.asarray(features.values)), torch.from_numpy(labels)
        self.strangers = self.first_strangers()
        self.val: Features | None = None
        if split.val is not None:
            self.val = self.cached(split.val, 1)
            note_bad(self.bad_images, split.val, self.val.bad)
        sample = sample_for(config.projection_init, len(labels), config.seed)
        projection = start_projection(
            config.projection_init,
            self.embedder,
            features.values[0][self.rows[sample]],
            labels[sample],
            size=config.embedding_size,
            seed=config.seed,
            how=self.refit_how,
            teacher_NT=None if teacher_NT is None else teacher_NT[self.rows[sample]],
        )
        self.projection = projection.to(self.device)
        self.follow(teacher_NT)
        self.model = self.with_loss(self.projection, self.identity_means)
        self.sampler = self.sampler_of(self.labels.numpy())
        self.who_is_alike: np.ndarray | None = None  # of this epoch: the nearest identities of each
        self.steps_per_epoch = self.sampler.steps

    @property
    def embedding_size(self) -> int:
        """Numbers in an embedding."""
        return int(self.projection.weight.shape[0])

    @property
    def identities(self) -> int:
        """Labels that there are: the training identities, and the strangers."""
        return max(len(self.split.train.identities), int(self.labels.max()) + 1)

    @torch.no_grad()
    def identity_means(self) -> Tensor:
        """Unit vectors (C, D) along the mean embedding of each training identity as the projection is now, strangers
        among them; 0 of one without images."""
        sums_CD = torch.zeros(self.identities, self.embedding_size)
        for places in torch.arange(len(self.labels)).split(4096):
            features = self.features_of(places.numpy(), np.zeros(len(places), np.int64)).to(self.device)
            unit_BD = functional.normalize(self.projection(features).float(), dim=1).cpu()
            sums_CD.index_add_(0, self.labels[places], unit_BD)
        return functional.normalize(sums_CD, dim=1)

    @torch.no_grad()
    def first_embeddings(self) -> tuple[Tensor, np.ndarray]:
        """Unit embeddings (N, D) of some images as training begins, and their rows among the teacher's."""
        places = first_rows(len(self.labels), self.config.seed)
        features = self.features_of(places, np.zeros(len(places), np.int64)).to(self.device)
        return functional.normalize(self.projection(features).float(), dim=1), self.teacher_rows_of(places)

    def teacher_rows_of(self, places: np.ndarray) -> np.ndarray:
        """The images' rows (B,) among the teacher's: the labelled ones, then the unlabelled."""
        known = places < len(self.rows)
        found = np.empty(len(places), np.int64)
        found[known] = self.rows[places[known]]
        if not known.all():
            _, image = self.stranger_of(places[~known])
            found[~known] = len(self.split.train) + self.stranger_rows[image]
        return found

    def stranger_of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(view, number among the strangers) of places behind the labelled images."""
        view, image = np.divmod(places - len(self.rows), len(self.stranger_rows))
        return view, image

    def first_strangers(self) -> Tensor:
        """The views (V, S, F) of the unlabelled images, each image a person of its own: their labels join `labels`.

        No teacher speaks of them and no other image of the same person is known; that two of them are two people is
        what they teach, and that a person stays the same in worse light. Source of the idea: Dosovitskiy et al. 2014,
        arXiv:1406.6909 (exemplars)."""
        index = self.split.unlabelled
        if index is None:
            return self.values[:, :0]
        features = self.cached(index, max(self.config.views, STRANGER_VIEWS))
        note_bad(self.bad_images, index, features.bad)
        self.stranger_rows = np.flatnonzero(features.valid)
        people = len(self.split.train.identities) + np.arange(len(self.stranger_rows))
        self.labels = torch.cat([self.labels, torch.from_numpy(np.tile(people, len(features.values)))])
        return torch.from_numpy(np.asarray(features.values))

    def parts(self) -> list[tuple[nn.Module, float]]:
        """What trains, with its learning rate."""
        return [(self.projection, self.config.lr), *self.parts_of_loss()]

    def batches(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places among the kept rows, then the strangers' views; view of each) of the steps of an epoch."""
        steps = self.sampler.epoch(epoch, self.alike_in(start), self.config.alike)
        for step in range(start, len(steps)):
            places = steps.rows(step)  # of all processes: a view does not depend on how many there are
            views = np.random.default_rng([self.config.seed, epoch, step, 3]).integers(
                self.values.shape[0], size=len(places)
            )
            yield steps.own(places), steps.own(views)

    def alike_in(self, start: int) -> np.ndarray | None:
        """The nearest identities (C, k) of each, as the epoch began; None where they are drawn."""
        if not self.config.alike:
            return None
        if start == 0 or self.who_is_alike is None:
            means_CD = self.identity_means()[torch.unique(self.labels)].numpy()
            known = None
            if distributed.rank() == 0:
                known = most_alike(means_CD, self.config.alike, self.families())
            self.who_is_alike = distributed.from_first(known)
        return self.who_is_alike

    @property
    def origin(self) -> dict[str, str]:
        """Where the run began; once prepared, with which families."""
        if self.family_C is None:
            return super().origin
        return super().origin | {"families": hashlib.sha256(self.family_C.tobytes()).hexdigest()}

    def families(self) -> np.ndarray | None:
        """(C,) the family of each label that there is, in order; a stranger is his own. None without --families."""
        if self.family_C is None:
            return None
        of_label = np.arange(self.identities)
        of_label[: len(self.family_C)] = self.family_C
        return of_label[torch.unique(self.labels).numpy()]

    def extra_state(self) -> dict[str, Any]:
        """What stage two keeps, and who was alike as the epoch began."""
        known = self.who_is_alike
        alike = {} if known is None else {"alike": torch.from_numpy(known)}
        return super().extra_state() | alike

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take it back. Raises ConfigError for other data, weights or pictures than the run began with."""
        super().load_extra_state(state)
        if "alike" in state:
            self.who_is_alike = state["alike"].cpu().numpy()

    def train_mode(self, epoch: int) -> None:
        """The projection trains."""
        self.model.train()

    def step(
        self, batch: tuple[np.ndarray, np.ndarray], progress: float, backward: Backward
    ) -> dict[str, Figure]:
        """Project, mine, backward."""
        places, views = batch
        features = upload(self.features_of(places, views), self.device)
        labels = upload(self.labels[torch.from_numpy(places)], self.device)
        rows = torch.from_numpy(self.teacher_rows_of(places))
        unit_BD = functional.normalize(self.model(features).float(), dim=1)
        loss, figures = self.objective(unit_BD, labels, rows)
        backward(loss)
        return figures

    def features_of(self, places: np.ndarray, views: np.ndarray) -> Tensor:
        """Features (B, F) of places; a stranger's place is one view already."""
        known = places < len(self.rows)
        if known.all():
            return self.values[torch.from_numpy(views), torch.from_numpy(self.rows[places])]
        features = torch.empty(len(places), self.values.shape[2])
        features[known] = self.values[
            torch.from_numpy(views[known]), torch.from_numpy(self.rows[places[known]])
        ]
        view, image = self.stranger_of(places[~known])
        features[~known] = self.strangers[torch.from_numpy(view), torch.from_numpy(self.stranger_rows[image])]
        return features

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
        return self.figures_of(net_of(model))

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """The frozen backbone with the projection, as the run's best weights."""
        self.embedder.projection = net_of(model)  # type: ignore[assignment]
        self.save_embedder(self.embedder, metrics)

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """The validation images as weights on this backbone embed them: from the cached features."""
        return self.val_embeddings(embedder.folded_projection())


def most_alike(means_CD: np.ndarray, group: int, family_C: np.ndarray | None = None) -> np.ndarray:
    """(C, k) int64: the other identities nearest to each by the cosine of their means (C, D), nearest first, k twice
    what a group of `group` identities has beside the first, and at most C - 1. Those of its family, where the number
    of each one's is given, come before all others."""
    k = min(CANDIDATES * (group - 1), len(means_CD) - 1)
    rows_CK = nearest(means_CD, means_CD, k + 1).rows
    own = rows_CK == np.arange(len(means_CD))[:, None]
    own[~own.any(1), -1] = True  # a copy of it may have come first: drop the last
    found_CK = rows_CK[~own].reshape(len(means_CD), k)
    if family_C is None:
        return found_CK
    unit_CD = unit_rows(means_CD)
    order = np.argsort(family_C, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(family_C[order])) + 1):
        for member in members if len(members) > 1 else ():
            relatives = members[members != member]
            relatives = relatives[np.argsort(-(unit_CD[relatives] @ unit_CD[member]), kind="stable")]
            others = found_CK[member][~np.isin(found_CK[member], relatives)]
            found_CK[member] = np.concatenate([relatives, others])[:k]
    return found_CK
