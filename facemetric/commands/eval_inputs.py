"""The embeddings that an evaluation reads: made from weights, or given; of the images, the gallery, a second model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.commands.embedding import GALLERY, SECOND, announced, embed_listed, is_stored
from facemetric.config import EvalConfig, require
from facemetric.data.index import ImageIndex, index_files, read_index
from facemetric.data.pair_images import distinct_pairs, resolve
from facemetric.data.pairs import Pairs
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import check_folds
from facemetric.machine import pick_device
from facemetric.model.weights import load_weights
from facemetric.model.weights_folder import find_weights


class Tables(NamedTuple):
    """The images that are scored, and what each model makes of them, row by row; the gallery."""

    images: ImageIndex | None
    table: EmbeddingTable
    second: EmbeddingTable | None
    gallery: EmbeddingTable | None


def read_tables(config: EvalConfig, pairs: Pairs | None) -> Tables:
    """Everything that is to be scored. What can be wrong with names and files is found before the long work.

    Beside embeddings that were given, `data` only lends its pictures to the report, or to a second model."""
    for name in (config.weights, config.compare):
        if name and not is_stored(name):
            find_weights(name)
    if pairs is not None and pairs.fold is not None:
        check_folds(pairs.same, pairs.fold)
    images = read_images(config, pairs)
    if pairs is not None and images is not None:
        distinct_pairs(pairs, *resolve(pairs, images, missing_list=config.out / "missing_images.txt"))
    gallery_images = None
    if config.gallery and not is_stored(config.gallery[0]):
        require(bool(config.weights), "--gallery of images needs --weights; beside --embeddings give an .npz")
        gallery_images = announced(read_index(config.gallery))
    second = EmbeddingTable.load(config.compare) if is_stored(config.compare) else None
    if config.embeddings:
        table = EmbeddingTable.load(config.embeddings)
    else:
        assert images is not None
        table = embed(config, config.weights, images, pairs)
    if config.compare and second is None:
        require(images is not None, "--compare with weights needs their images: give --data")
        assert images is not None
        second = embed(config, config.compare, images, pairs, SECOND)
    gallery = None
    if gallery_images is not None:
        gallery = embed(config, config.weights, gallery_images, None, GALLERY)
    elif config.gallery:
        gallery = EmbeddingTable.load(config.gallery[0])
        check_sizes(table, gallery, "the gallery")
    return Tables(images, table, None if second is None else aligned(table, second), gallery)


def read_images(config: EvalConfig, pairs: Pairs | None) -> ImageIndex | None:
    """The images of `data`, or else those that the pairs name; None where embeddings are all there is."""
    if config.data:
        return announced(read_index(config.data))
    if config.embeddings or pairs is None:
        return None
    if pairs.holds_images:
        return announced(read_index(pairs.source))
    try:
        return index_files(pairs.paths(), Path(pairs.source).parent)
    except DataError as error:
        raise DataError(f"{error}; or say with --data which images the pairs name") from None


def embed(
    config: EvalConfig, weights: str, index: ImageIndex, pairs: Pairs | None, of: str = ""
) -> EmbeddingTable:
    """Embed the images and keep the table in the out folder. `of`: which set, as for embed_listed."""
    needed = np.concatenate(resolve(pairs, index)).tolist() if pairs is not None else ()
    embedder = load_weights(weights, pick_device(config.device))
    table = embed_listed(config, embedder, index, outcome="not scored", of=of, needed=needed)
    table.save(config.out / (f"embeddings_{of}.npz" if of else "embeddings.npz"))
    return table


def aligned(first: EmbeddingTable, second: EmbeddingTable) -> EmbeddingTable:
    """The second model's rows in the order of the first's paths, with the first's identities and groups.

    Raises DataError where an image of the first is not in the second, where a path tells no image from another,
    or where the tables do not agree on who is one person; their names may differ."""
    alike = np.array_equal(first.paths, second.paths)
    rows = np.arange(len(first)) if alike else matching_rows(first, second)
    check_people(first, second.identities[rows])
    return EmbeddingTable(second.embeddings[rows], first.identities, first.paths, first.groups)


def matching_rows(first: EmbeddingTable, second: EmbeddingTable) -> npt.NDArray[np.int64]:
    """The row of the second table of each path of the first."""
    for table, which in ((first, "first"), (second, "second")):
        twice = table.standing_twice()
        if twice:
            raise DataError(
                f"{len(twice)} of the paths of the {which} model's embeddings stand on several rows: {some_of(twice)}; "
                "name each image once, or list the same paths in the same order for both models"
            )
    paths = first.paths.tolist()
    rows = np.array([-1 if (row := second.find(path)) is None else row for path in paths])
    missing = [path for path, row in zip(paths, rows, strict=True) if row < 0]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(first)} images have no embedding of the second model: {some_of(missing)}; "
            "both models must embed the same images, under the same paths"
        )
    return rows


def check_people(first: EmbeddingTable, other: npt.NDArray[np.str_]) -> None:
    """Raise DataError where the identities `other` (N,) of the same images make other people of them."""
    if np.array_equal(first.identities, other):
        return
    (start_W, who_N), (other_start_W, other_N) = (
        np.unique(names, return_index=True, return_inverse=True)[1:] for names in (first.identities, other)
    )
    differs = (other_N != other_N[start_W[who_N]]) | (who_N != who_N[other_start_W[other_N]])
    if differs.any():
        row = int(differs.argmax())
        raise DataError(
            f"{differs.sum()} of {len(first)} images are of another person for the second model: first "
            f"{first.name(row)}, {str(first.identities[row])!r} and {str(other[row])!r}; give both models the "
            "same identities"
        )


def some_of(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def check_sizes(table: EmbeddingTable, other: EmbeddingTable, what: str) -> None:
    """Raise DataError where two tables cannot come from one model."""
    size, other_size = table.embeddings.shape[1], other.embeddings.shape[1]
    if size != other_size:
        raise DataError(
            f"{what} has embeddings of {other_size} numbers, the images of {size}; use one model for both"
        )
