"""The list of noise that a head with several centres writes."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from facemetric import pretrain
from facemetric.data.index import read_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.heads import SubcentreArcFaceHead
from facemetric.training.tasks import label_noise
from facemetric.training.tasks.label_noise import NOISE, dominant_centres, list_noise


def test_the_dominant_centre_is_that_of_most_images() -> None:
    label = np.array([0, 0, 0, 1, 1, 2])
    cosine = np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.7], [0.5, 0.4], [0.1, 0.3], [-0.2, -0.1]])
    dominant, own = dominant_centres(cosine, label)
    assert dominant.tolist() == [1, 1, 1, 0, 0, 1]  # one image each: the first of the two
    np.testing.assert_allclose(own, [0.1, 0.8, 0.7, 0.5, 0.1, -0.1])


def test_a_run_lists_its_noise(
    faces: Path, tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = small | {"head": "subcentre-arcface", "head_args": "centres = 2", "out": tmp_path / "run"}
    run = pretrain(str(faces), **options)
    with (run.run / NOISE).open() as file:
        rows = list(csv.DictReader(file))
    assert "farther than 75 degrees from their identity's dominant centre" in capsys.readouterr().out
    cosine = [float(row["cosine"]) for row in rows]
    assert cosine == sorted(cosine)
    assert all(value < np.cos(np.radians(75)) + 1e-4 for value in cosine)
    names = set(read_index([str(faces)]).identities)
    assert {row["identity"] for row in rows} <= names
    plain = pretrain(str(faces), **small | {"out": tmp_path / "plain"})
    assert not (plain.run / NOISE).exists()


def test_images_put_into_the_wrong_folder_are_found(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings that tell the truth, a head whose first centres know it, and four images with another's name."""
    index = read_index([str(faces)])
    people = len(index.identities)
    truth = index.identity.copy()
    wrong = [0, 7, 8, 20]
    truth[wrong] = (truth[wrong] + 1) % people
    head = SubcentreArcFaceHead(people, people, scale=10.0, margin=0.1, centres=2)
    head.start_from(torch.eye(people))
    rows = np.eye(people, dtype=np.float32)[truth] + 0.01
    names = np.array(index.identities)[index.identity]
    table = EmbeddingTable(rows, names, np.array([index.name(i) for i in range(len(index))]))
    monkeypatch.setattr(label_noise, "embed_index", lambda *_, **__: SimpleNamespace(table=table))
    list_noise(SimpleNamespace(head=head, embedder=None), index, tmp_path, 0)  # type: ignore[arg-type]
    with (tmp_path / NOISE).open() as file:
        found = {row["path"]: row for row in csv.DictReader(file)}
    assert set(found) == {index.name(i) for i in wrong}
    for row in found.values():
        assert float(row["degrees"]) > 75
