"""Templates: several images, or frames of a video, that stand for one person, made one embedding.

Shapes: N images, R images of templates (an image may be in several), T templates, M media, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError, first_few, plural
from facemetric.evaluation.curves import Floats, Ints
from facemetric.evaluation.figures import Figure
from facemetric.evaluation.table import EmbeddingTable, unit_rows

Pool = Literal["mean", "quality", "media"]
CHUNK = 1 << 14  # images added up at once
OWN_COLUMNS = ("template", "media", "quality")  # of the images; no groups of templates


@dataclass(frozen=True)
class TemplateRows:
    """R images of T templates: `row` (R,) of a table of embeddings, `template` (R,) numbers into `names` and
    `identities` (T,); `medium` (R,) numbers from 0, those of an unknown medium each its own; `weight` (R,), 0 or more:
    the quality of the image."""

    row: Ints
    template: Ints
    medium: Ints
    weight: Floats
    names: npt.NDArray[np.str_]
    identities: npt.NDArray[np.str_]

    def without(self, gone: npt.ArrayLike) -> TemplateRows:
        """The same templates without the rows (G,) of a table that cannot be read; the rows that are left move up.

        Raises DataError where a template has no image left."""
        gone_G = np.sort(np.asarray(gone, dtype=np.int64))
        keep = ~np.isin(self.row, gone_G)
        lost = np.setdiff1d(self.template, self.template[keep])
        if len(lost):
            raise DataError(
                f"{plural(len(lost), 'template')} without an image that can be read: "
                f"{first_few(self.names[lost].tolist(), 5)}; mend the images or take the templates out"
            )
        row = self.row[keep] - np.searchsorted(gone_G, self.row[keep])
        return TemplateRows(
            row,
            self.template[keep],
            self.medium[keep],
            self.weight[keep],
            self.names,
            self.identities,
        )

    def first_images(self, table: EmbeddingTable) -> dict[str, str]:
        """The path of the first image of each template."""
        at = np.unique(self.template, return_index=True)[1]
        return dict(zip(self.names.tolist(), table.paths[self.row[at]].tolist(), strict=True))


def number_media(template: npt.ArrayLike, media: npt.ArrayLike) -> Ints:
    """The medium (R,) of each image as a number from 0: equal names within one template are one medium, an image
    without a name ("") is one of its own."""
    template_R, media_R = np.asarray(template), np.asarray(media)
    own_R = np.where(media_R == "", np.arange(len(media_R)), -1)
    code_R = np.unique(media_R, return_inverse=True)[1]
    return np.unique(np.stack([template_R, code_R, own_R]), axis=1, return_inverse=True)[1].reshape(-1)


def pool_templates(embeddings: npt.ArrayLike, rows: TemplateRows, how: Pool) -> npt.NDArray[np.float32]:
    """Unit embeddings (T, D) of templates, from those of the images (N, D).

    "mean": the sum of the images' unit vectors; "quality": each times its weight; "media": the mean of the unit
    vectors of each medium, added up, so that a video of a hundred frames counts as one photograph does (as the
    IJB-A, B and C evaluations do). Raises DataError where the sum of a template is zero.
    """
    if how not in get_args(Pool):
        raise ConfigError(f"unknown pooling {how!r}; choose {', '.join(get_args(Pool))}")
    unit_ND = unit_rows(embeddings)
    weight_R: Floats = np.ones(len(rows.row))
    if how == "quality":
        weight_R = rows.weight
        if not np.isfinite(weight_R).all():
            raise DataError(
                f"{np.isnan(weight_R).sum():,} of {len(weight_R):,} images of the templates have no quality; give a "
                "column `quality`, or another --pool"
            )
    elif how == "media":
        weight_R = 1 / np.bincount(rows.medium)[rows.medium]
    pooled_TD = np.zeros((len(rows.names), unit_ND.shape[1]))
    order = np.argsort(rows.template, kind="stable")
    for at in range(0, len(order), CHUNK):
        part = order[at : at + CHUNK]
        template = rows.template[part]
        start = np.flatnonzero(np.diff(template, prepend=-1))
        values = weight_R[part, None] * unit_ND[rows.row[part]].astype(np.float64)
        pooled_TD[template[start]] += np.add.reduceat(values, start, axis=0)
    length_T = np.linalg.norm(pooled_TD, axis=1)
    if (length_T <= 1e-9).any():
        raise DataError(
            f"the images of template {rows.names[length_T.argmin()]} add up to nothing; all of its qualities may be 0"
        )
    return (pooled_TD / length_T[:, None]).astype(np.float32)


def template_table(table: EmbeddingTable, rows: TemplateRows, how: Pool) -> EmbeddingTable:
    """A table with a row for each template: its name as the path, its person, and the groups that all its images
    share."""
    groups = {}
    order = np.argsort(rows.template, kind="stable")
    first_T = np.searchsorted(rows.template[order], np.arange(len(rows.names)))
    for name, column in table.groups.items():
        if name in OWN_COLUMNS:
            continue
        of_R = column[rows.row]
        of_T = of_R[order][first_T]
        mixed = np.zeros(len(of_T), bool)
        np.logical_or.at(mixed, rows.template, of_R != of_T[rows.template])
        groups[name] = np.where(mixed, "", of_T)
    return EmbeddingTable(
        pool_templates(table.embeddings, rows, how), rows.identities, rows.names, groups, table.weights
    )


@dataclass(frozen=True)
class Pooled:
    """What the templates of an evaluation were made of."""

    how: Pool
    templates: int
    images: int
    media: int
    lists: tuple[str, ...] = ()
    first: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The name of an image of each template, to be shown."""

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        counts = {"templates": self.templates, "images": self.images, "media": self.media}
        return {"pool": self.how, **counts, "lists": list(self.lists)}

    def figures(self) -> list[Figure]:
        """None: it says what the other figures are of."""
        return []

    def text(self) -> str:
        """How much was pooled, in words."""
        media = f", {plural(self.media, 'medium', 'media')}" if self.media != self.images else ""
        return f"{plural(self.templates, 'template')} of {plural(self.images, 'image')}{media}, pooled by {self.how}"
