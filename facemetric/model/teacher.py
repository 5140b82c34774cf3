"""What a student learns from a teacher's embeddings: to point where they point, and to lie as far apart as they do.

The teacher has seen the clean picture, the student sees an augmented one. Identities are not needed, so pictures of
anybody serve. Sources: the direction of each embedding as in FitNets (Romero et al. 2014, arXiv:1412.6550) and ReFO
(Li et al. 2023, CVPR, features alone); the relation of pairs as in Park et al. 2019, arXiv:1904.05068 (RKD). The term
on pairs compares cosines, as people compare them, not distances divided by their mean.

Shapes: B rows of this process, A rows of all, N images, F features, D student's embedding, T teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.model.embedder import Embedder

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # of least squares, to choose from
HELD = 5  # every so many rows choose


def direction_loss(student_BT: Tensor, teacher_BT: Tensor) -> Tensor:
    """The mean of 1 - cosine between the rows of each, 0..2."""
    return (1 - functional.cosine_similarity(student_BT.float(), teacher_BT, dim=1)).mean()


def relation_loss(student_BD: Tensor, student_AD: Tensor, teacher_BT: Tensor, teacher_AT: Tensor) -> Tensor:
    """The mean squared difference between the cosines of all pairs (B, A) by the student and by the teacher.

    All rows are unit vectors; a row beside itself counts too, as 0."""
    return (student_BD @ student_AD.T - teacher_BT @ teacher_AT.T).square().mean()


def first_layer(values_NF: Tensor, teacher_NT: Tensor, own: nn.Linear | None = None) -> nn.Linear:
    """The linear layer F -> T to begin with: least squares on N rows with the penalty that does best on every fifth
    of them, or `own` where that does better still on these."""
    held = torch.arange(len(values_NF), device=values_NF.device) % HELD == HELD - 1
    if not held.any():
        return own or ridge_map(values_NF, teacher_NT, PENALTIES[0])

    def error(layer: nn.Linear) -> float:
        with torch.no_grad():
            return float(direction_loss(layer(values_NF[held].float()), teacher_NT[held]))

    errors = [error(ridge_map(values_NF[~held], teacher_NT[~held], penalty)) for penalty in PENALTIES]
    if own is not None and error(own) <= min(errors):
        return own
    return ridge_map(values_NF, teacher_NT, PENALTIES[errors.index(min(errors))])


def ridge_map(values_NF: Tensor, teacher_NT: Tensor, penalty: float) -> nn.Linear:
    """The linear layer F -> T of least squared error on N rows, its weights held small by a penalty, in units of the
    mean variance of the inputs."""
    inputs, targets = values_NF.double(), teacher_NT.double()
    mean_F, mean_T = inputs.mean(0), targets.mean(0)
    centred = inputs - mean_F
    gram = centred.T @ centred
    gram.diagonal().add_(penalty * gram.diagonal().mean().clamp_min(1e-12))
    weight_FT = torch.linalg.solve(gram, centred.T @ (targets - mean_T))
    linear = nn.Linear(values_NF.shape[1], teacher_NT.shape[1])
    with torch.no_grad():
        linear.weight.copy_(weight_FT.T)
        linear.bias.copy_(mean_T - mean_F @ weight_FT)
    return linear.to(values_NF.device)


class Student(nn.Module):
    """An embedder that learns, the layer from its embedding to the teacher's, and the head on its embedding.

    Layer and head are thrown away when it has learned."""

    def __init__(self, embedder: Embedder, to_teacher: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        self.embedder, self.to_teacher, self.head = embedder, to_teacher, head

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> logits (B, C)."""
        assert self.head is not None
        return self.head(self.embed(images))

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> embeddings (B, D) before they are put on the unit sphere."""
        return self.embedder.project(self.embedder.features(images))
