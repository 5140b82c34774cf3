"""The terms that a student learns by, against numpy; the layer to the teacher, against the least squares it solves."""

from __future__ import annotations

import numpy as np
import torch

from facemetric.model.teacher import direction_loss, first_layer, relation_loss, ridge_map


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_direction_is_one_less_the_cosine() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(6, 4)), unit(rng.normal(size=(6, 4)))
    wanted = np.mean([1 - s @ t / np.linalg.norm(s) for s, t in zip(student, teacher, strict=True)])
    found = direction_loss(torch.tensor(student), torch.tensor(teacher, dtype=torch.float32))
    np.testing.assert_allclose(float(found), wanted, rtol=1e-5)
    assert float(direction_loss(torch.tensor(3 * teacher), torch.tensor(teacher))) < 1e-6  # of any length


def test_the_relation_compares_all_pairs_of_cosines() -> None:
    rng = np.random.default_rng(1)
    student, teacher = unit(rng.normal(size=(5, 3))), unit(rng.normal(size=(5, 7)))
    wanted = 0.0
    for i in range(5):
        for j in range(5):
            wanted += (student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2 / 25
    s, t = torch.tensor(student), torch.tensor(teacher)
    np.testing.assert_allclose(float(relation_loss(s, s, t, t)), wanted, rtol=1e-9)


def test_the_relations_gradient_is_that_of_its_definition() -> None:
    rng = np.random.default_rng(2)
    s = torch.tensor(unit(rng.normal(size=(4, 3))), requires_grad=True)
    t = torch.tensor(unit(rng.normal(size=(4, 5))))
    relation_loss(s, s, t, t).backward()
    off = (s @ s.T - t @ t.T).detach()
    assert s.grad is not None
    torch.testing.assert_close(s.grad, 4 * off @ s.detach() / 16)  # d/ds of mean (s s' - t t')^2


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(3)
    s, t = torch.tensor(unit(rng.normal(size=(6, 3)))), torch.tensor(unit(rng.normal(size=(6, 4))))
    whole = relation_loss(s, s, t, t)
    parts = [relation_loss(s[own], s, t[own], t) * len(s[own]) / 6 for own in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole)


def test_the_ridge_finds_a_linear_teacher_again() -> None:
    rng = np.random.default_rng(4)
    values, weight, bias = rng.normal(size=(500, 6)), rng.normal(size=(6, 3)), rng.normal(size=3)
    targets = values @ weight + bias + rng.normal(size=(500, 3))
    layer = ridge_map(torch.tensor(values), torch.tensor(targets), 0.01)
    centred = values - values.mean(0)
    gram = centred.T @ centred
    wanted = np.linalg.solve(gram + 0.01 * np.diag(gram).mean() * np.eye(6), centred.T @ targets)
    np.testing.assert_allclose(layer.weight.detach().numpy(), wanted.T, rtol=1e-5)
    found = layer(torch.tensor(values, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(found.mean(0), targets.mean(0), atol=1e-5)  # the penalty leaves the mean


def test_the_ridge_has_an_answer_for_fewer_images_than_features() -> None:
    rng = np.random.default_rng(5)
    values, targets = torch.tensor(rng.normal(size=(4, 9))), torch.tensor(rng.normal(size=(4, 2)))
    layer = ridge_map(values, targets, 1e-3)
    assert torch.isfinite(layer.weight).all()
    torch.testing.assert_close(layer(values.float()), targets.float(), atol=0.01, rtol=0)
    same = ridge_map(
        torch.ones(3, 2), torch.tensor([[1.0], [2.0], [3.0]]), 1e-3
    )  # nothing to tell them apart by
    torch.testing.assert_close(same(torch.ones(1, 2)), torch.tensor([[2.0]]))


def test_the_first_layer_is_not_fooled_by_as_many_features_as_images() -> None:
    rng = np.random.default_rng(6)
    signal = rng.normal(size=(400, 8))
    targets = torch.tensor(3 + signal + rng.normal(size=(400, 8)), dtype=torch.float32)
    values = torch.tensor(np.concatenate([signal, rng.normal(size=(400, 292))], 1), dtype=torch.float32)
    layer = first_layer(values[:300], targets[:300])

    def error(of: torch.nn.Linear) -> float:
        with torch.no_grad():
            return float(direction_loss(of(values[300:]), targets[300:]))

    assert error(layer) < 0.9 * error(ridge_map(values[:300], targets[:300], 1e-3))
    better = torch.nn.Linear(300, 8)
    with torch.no_grad():
        better.weight.zero_()
        better.weight[:, :8] = torch.eye(8)
        better.bias.fill_(3.0)
    assert first_layer(values[:300], targets[:300], better) is better
    worse = torch.nn.Linear(300, 8)
    assert first_layer(values[:300], targets[:300], worse) is not worse
