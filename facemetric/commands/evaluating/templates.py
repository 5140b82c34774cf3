"""The templates of an evaluation: their lists are read and their images found once, and the embeddings pooled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.config import EvalConfig
from facemetric.data.index import ImageIndex
from facemetric.data.pair_images import resolve
from facemetric.data.pair_list import Pairs
from facemetric.data.template_lists import (
    TemplateList,
    TemplateNames,
    joined,
    list_of,
    read_template_pairs,
    read_templates,
)
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.templates import Pool, Pooled, TemplateRows, number_media, template_table

COLUMN = "column"  # in place of a list: the column `template` of the images themselves
SEARCHED, ENROLLED = "templates", "gallery_templates"


class PooledTables(NamedTuple):
    """A row for each template of those that are looked for, and of those that are enrolled."""

    table: EmbeddingTable
    gallery: EmbeddingTable | None


@dataclass(frozen=True)
class Templates:
    """The lists of templates, and the rows of their images."""

    listed: TemplateList
    rows: TemplateRows
    gallery: TemplateRows | None
    sources: tuple[str, ...]

    @property
    def names(self) -> TemplateNames:
        """What pairs of templates name."""
        return TemplateNames(self.rows.names)

    def pairs(self, file: Path | None) -> Pairs | None:
        """Pairs of templates."""
        return read_template_pairs(file, self.listed) if file is not None else None

    def needed_images(self, images: ImageIndex) -> tuple[ImageIndex, Templates]:
        """The images that a template names, and the templates by their rows there."""
        both = [self.rows, self.gallery] if self.gallery is not None else [self.rows]
        kept = np.unique(np.concatenate([rows.row for rows in both]))
        own, gallery = (
            None if rows is None else replace(rows, row=np.searchsorted(kept, rows.row))
            for rows in (self.rows, self.gallery)
        )
        assert own is not None
        return images.select(kept), replace(self, rows=own, gallery=gallery)

    def pool(self, table: EmbeddingTable, bad: list[int], how: Pool) -> tuple[PooledTables, Pooled]:
        """The templates of a table of images, without the rows that could not be read."""
        own = self.rows.without(bad)
        gallery = None if self.gallery is None else self.gallery.without(bad)
        tables = PooledTables(
            template_table(table, own, how), None if gallery is None else template_table(table, gallery, how)
        )
        media = len(np.unique(own.medium))
        counts = (len(own.names), len(own.row), media)
        return tables, Pooled(how, *counts, self.sources, own.first_images(table))


def open_templates(
    config: EvalConfig, table: EmbeddingTable | None, images: ImageIndex | None
) -> Templates | None:
    """The templates of --templates and --gallery-templates among the images, or the rows of a stored table."""
    if not config.templates:
        return None
    known = named_images(table, images)
    own = read_lists(config.templates, known)
    gallery = read_lists(config.gallery_templates, known) if config.gallery_templates else None
    return Templates(
        own,
        rows_of(own, known, config.out),
        None if gallery is None else rows_of(gallery, known, config.out),
        (*config.templates, *config.gallery_templates),
    )


@dataclass(frozen=True)
class NamedImages:
    """The images that templates may name: an index, or a table of embeddings; N identities and columns of theirs."""

    names: EmbeddingTable | ImageIndex
    identities: npt.NDArray[np.str_]
    columns: Mapping[str, npt.NDArray]

    def name(self, i: int, /) -> str:
        """The name of an image."""
        return self.names.name(i)

    def find(self, name: str, /) -> int | None:
        """The row of a name."""
        return self.names.find(name)

    def __len__(self) -> int:
        return len(self.names)


def named_images(table: EmbeddingTable | None, images: ImageIndex | None) -> NamedImages:
    """The stored table where there is one, else the images."""
    if table is not None:
        return NamedImages(table, table.identities, table.groups)
    assert images is not None
    return NamedImages(images, np.array(images.identities, dtype=np.str_)[images.identity], images.groups())


def read_lists(sources: tuple[str, ...], known: NamedImages) -> TemplateList:
    """All lists as one; a subject that no list names is the image's identity."""
    found = joined(
        [of_column(known) if source == COLUMN else read_templates(source, known) for source in sources]
    )
    if (found.subject != "").all():
        return found
    rows = rows_in(found, known, None)
    first = np.unique(found.template, return_index=True, return_inverse=True)
    own = known.identities[rows[first[1]]][first[2]]
    return replace(found, subject=np.where(found.subject == "", own, found.subject))


def of_column(known: NamedImages) -> TemplateList:
    """The templates of the images' own columns `template`, and `media` and `quality` where they have these."""
    if "template" not in known.columns:
        there = ", ".join(known.columns) or "none"
        raise DataError(
            f"--templates column: the images have no column template (there is {there}); add it to the csv of DATA, or "
            "name a list of templates"
        )
    rows = [
        {
            "image": known.name(i),
            "template": str(template),
            "subject": str(known.identities[i]),
            "media": str(known.columns["media"][i]) if "media" in known.columns else "",
            "quality": str(known.columns["quality"][i]) if "quality" in known.columns else "",
        }
        for i, template in enumerate(known.columns["template"].tolist())
        if template
    ]
    return list_of(rows, "the column template")


def rows_in(listed: TemplateList, known: NamedImages, missing_list: Path | None) -> npt.NDArray[np.int64]:
    """The row (R,) of each image of a list."""
    names, number_R = np.unique(listed.image, return_inverse=True)
    each = np.arange(len(names), dtype=np.int32)
    pairs = Pairs(tuple(names.tolist()), each, each, np.ones(len(names), bool), source=listed.source)
    return resolve(pairs, known, missing_list=missing_list)[0][number_R]


def rows_of(listed: TemplateList, known: NamedImages, out: Path) -> TemplateRows:
    """The templates of a list by rows; `out` gets a list of the images that are not there."""
    row_R = rows_in(listed, known, out / "missing_images.txt")
    names = listed.templates
    number = {name: i for i, name in enumerate(names.tolist())}
    template_R = np.array([number[name] for name in listed.template.tolist()])
    first_T = np.unique(template_R, return_index=True)[1]
    medium_R = number_media(template_R, listed.media)
    return TemplateRows(row_R, template_R, medium_R, listed.quality, names, listed.subject[first_T])
