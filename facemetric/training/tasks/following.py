"""A teacher in both stages: the images that its layer is first fitted to; in stage two, its terms beside the loss.

Shapes: B rows of this process, A rows of all, N images, F features, D student's embedding, T teacher's.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor, nn

from facemetric import distributed
from facemetric.config import StageConfig, require
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.images import Preprocess, normalise, upload
from facemetric.data.index import ImageIndex
from facemetric.data.loader import load_batches
from facemetric.data.transforms import eval_transform
from facemetric.model.embedder import Embedder, in_pieces
from facemetric.model.teacher import direction_loss, first_layer, relation_loss
from facemetric.training.step.readings import Figure
from facemetric.training.tasks.teacher_rows import Joined

FIRST_LOOK = 4096  # images from which the layer to the teacher's embedding is first fitted


def first_rows(count: int, seed: int) -> np.ndarray:
    """Which of `count` images the layer is first fitted to, drawn from the seed."""
    return np.sort(np.random.default_rng([seed, 17]).permutation(count)[:FIRST_LOOK])


def first_features(
    embedder: Embedder,
    index: ImageIndex,
    preprocess: Preprocess,
    *,
    seed: int,
    workers: int,
    bad_images: BadImageLog,
) -> tuple[Tensor, np.ndarray]:
    """The backbone's features (N, F) of some images as they are, and their rows."""
    rows = first_rows(len(index), seed)
    steps = [rows[i : i + 64] for i in range(0, len(rows), 64)]
    embedder.eval()
    features, seen = [], []
    for batch in load_batches(index, steps, eval_transform(preprocess), workers=workers):
        note_bad(bad_images, index, batch.bad)
        if len(batch.rows):
            images = normalise(batch.images, preprocess, embedder.device)
            features.append(in_pieces(embedder.features, images))
            seen.append(batch.rows.numpy())
    require(bool(features), "no image of the training can be read; see bad_images.csv")
    return torch.cat(features).clone(), np.concatenate(seen)


def mark_of(teacher_NT: Tensor, images: Joined) -> str:
    """A hash of the teacher's rows and of the unlabelled images: a run goes on with these alone."""
    taught = hashlib.sha256(teacher_NT.numpy().tobytes())
    for part in images.parts[1:]:
        taught.update(part.fingerprint.encode())
    return taught.hexdigest()


def teacher_terms(
    config: StageConfig, led_BT: Tensor, unit_BD: Tensor, teacher_BT: Tensor, share: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """This process's part of what the teacher adds to the loss, and each term by its name, for `share` of the batch.

    `led_BT`: the embeddings behind the layer to the teacher's; `unit_BD`: on the unit sphere."""
    parts = {"direction": direction_loss(led_BT, teacher_BT) * share}
    loss = config.teacher_weight * parts["direction"]
    if config.relation_weight:
        nobody = torch.zeros(len(unit_BD), dtype=torch.int64, device=unit_BD.device)
        student_AD, _, _ = distributed.gather_rows(unit_BD, nobody)
        teacher_AT, _, _ = distributed.gather_rows(teacher_BT, nobody)
        parts["relation"] = relation_loss(unit_BD, student_AD, teacher_BT, teacher_AT) * share
        loss = loss + config.relation_weight * parts["relation"]
    return loss, parts


class Following:
    """The teacher of stage two: what it says of each image, and the layer from the embedding to its own."""

    def __init__(self, config: StageConfig, images: Joined, teacher_NT: np.ndarray, size: int) -> None:
        """`teacher_NT`: unit vectors of the images; `size`: numbers in the student's embedding."""
        self.config, self.teacher = config, torch.from_numpy(teacher_NT)
        self.mark = mark_of(self.teacher, images)
        self.to_teacher = nn.Linear(size, teacher_NT.shape[1])

    def fit(self, unit_ND: Tensor, rows: np.ndarray) -> None:
        """Begin with the layer of least squares on the embeddings of these images."""
        fitted = first_layer(unit_ND, self.teacher[rows].to(unit_ND))
        self.to_teacher.load_state_dict(fitted.state_dict())

    def beside(
        self, loss: Tensor, figures: dict[str, Figure], unit_BD: Tensor, rows_B: Tensor
    ) -> tuple[Tensor, dict[str, Figure]]:
        """This process's part of the whole loss, the labels' and the teacher's, and the figures of all.

        The parts of all processes add up to those of one process with the whole batch."""
        config, device = self.config, unit_BD.device
        teacher_BT = upload(self.teacher[rows_B.cpu()], device)
        share = len(unit_BD) / distributed.total(unit_BD.new_full((), len(unit_BD)))  # of the global batch
        terms, parts = teacher_terms(config, self.to_teacher(unit_BD), unit_BD, teacher_BT, share)
        whole = config.label_weight * loss + terms
        sums = distributed.total(torch.stack([whole.detach(), *(part.detach() for part in parts.values())]))
        named = dict(zip(["loss", *parts], sums, strict=True))
        return whole, figures | {"label_loss": figures["loss"]} | named
