"""Templates: pooled as slow loops pool them, and what is wrong with lists of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation import templates
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.templates import TemplateRows, number_media, pool_templates, template_table

MEDIA = np.array(["a", "a", "a", "b", "", "", "a", "c"])
TEMPLATE = np.array([0, 0, 0, 0, 0, 1, 1, 2])
NAMES, WHO = np.array(["t0", "t1", "t2"]), np.array(["ann", "bob", "ann"])


def rows_of(weight: object = 1.0) -> TemplateRows:
    row = np.array([5, 1, 0, 2, 3, 4, 5, 0])  # images 0 and 5 are in two templates
    weights = np.broadcast_to(np.asarray(weight, float), row.shape)
    return TemplateRows(row, TEMPLATE, number_media(TEMPLATE, MEDIA), weights, NAMES, WHO)


def embeddings() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 5)) * np.arange(1, 7)[:, None]


def test_media_are_numbered_within_a_template() -> None:
    medium = number_media(TEMPLATE, MEDIA)
    groups = [set(np.flatnonzero(medium == number).tolist()) for number in np.unique(medium)]
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [3], [4], [5], [6], [7]]


@pytest.mark.parametrize("how", ["media", "mean", "quality"])
def test_pooled_as_a_slow_loop(how: str) -> None:
    emb, weight = embeddings(), np.array([0.5, 1, 0, 2, 1, 0.1, 1, 3])
    rows = rows_of(weight)
    found = pool_templates(emb, rows, how)  # type: ignore[arg-type]
    assert found.dtype == np.float32
    for t in range(3):
        here = t == TEMPLATE
        media = MEDIA[here] if how == "media" else [""] * int(here.sum())
        wanted = slow.pooled(emb[rows.row[here]], media, weight[here] if how == "quality" else None)
        np.testing.assert_allclose(found[t], wanted, atol=1e-7)
    # By media a video's three frames count as one picture: another direction than their plain sum.
    others = [pool_templates(emb, rows, other)[0] for other in ("media", "mean", "quality")]
    assert max(float(a @ b) for a, b in pairwise(others)) < 0.999


def test_a_table_of_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "CHUNK", 3)  # a template in two chunks
    groups = {
        "media": np.array(list("vwxyzv")),
        "sex": np.array(["f", "f", "f", "m", "m", "f"]),
        "age": np.array(["1", "1", "1", "1", "2", "2"]),
    }
    paths = np.array([f"{i}.jpg" for i in range(6)])
    table = EmbeddingTable(embeddings(), np.array(list("abcdef")), paths, groups, "w")
    found = template_table(table, rows_of(), "mean")
    assert found.paths.tolist() == ["t0", "t1", "t2"]
    assert found.identities.tolist() == ["ann", "bob", "ann"]
    np.testing.assert_allclose(
        found.embeddings[0], slow.pooled(embeddings()[[5, 1, 0, 2, 3]], [""] * 5), atol=1e-7
    )
    assert set(found.groups) == {"sex", "age"}
    assert found.groups["sex"].tolist() == ["", "", "f"]  # t0 and t1 have images of both
    assert found.groups["age"].tolist() == ["", "2", "1"]
    assert found.weights == "w"
    assert rows_of().first_images(table) == {"t0": "5.jpg", "t1": "4.jpg", "t2": "0.jpg"}


def test_images_that_cannot_be_read() -> None:
    left = rows_of().without([2, 3])
    assert left.row.tolist() == [3, 1, 0, 2, 3, 0]
    assert left.template.tolist() == [0, 0, 0, 1, 1, 2]
    np.testing.assert_allclose(  # of the table without these rows
        pool_templates(np.delete(embeddings(), [2, 3], 0), left, "mean")[1],
        slow.pooled(embeddings()[[4, 5]], ["", ""]),
        atol=1e-7,
    )
    with pytest.raises(DataError, match="1 template without an image that can be read: t2"):
        rows_of().without([0])


def test_what_cannot_be_pooled() -> None:
    with pytest.raises(ConfigError, match="unknown pooling 'median'; choose mean, quality, media"):
        pool_templates(embeddings(), rows_of(), "median")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="1 of 8 images of the templates have no quality"):
        pool_templates(embeddings(), rows_of([np.nan, *[1] * 7]), "quality")
    with pytest.raises(DataError, match="template t1 add up to nothing"):
        pool_templates(embeddings(), rows_of([1, 1, 1, 1, 1, 0, 0, 1]), "quality")
