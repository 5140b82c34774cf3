"""What an evaluation is of: weights, images, pairs and embeddings, each resolved once and handed down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.commands.embedding import (
    GALLERY,
    SECOND,
    colours_in,
    embed_images,
    is_stored,
    open_images,
    remove_lists,
    seen_in_training,
)
from facemetric.commands.evaluating.overlap import ImageSet, among_readable, find_overlap
from facemetric.config import EvalConfig, require
from facemetric.data.index import ImageIndex, index_files
from facemetric.data.pair_images import Names, distinct_pairs, resolve
from facemetric.data.pair_list import Pairs
from facemetric.data.pairs import read_pairs
from facemetric.errors import DataError, first_few
from facemetric.evaluation.embed import Embedded
from facemetric.evaluation.folds import check_folds
from facemetric.evaluation.retrieval import NO_OVERLAP, Overlap
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.machine import say
from facemetric.model.opened_weights import Weights, open_model


class ListedPairs(NamedTuple):
    """Listed pairs, each once, and the rows int32 (P,) of both their images; `notes` say what was left out."""

    pairs: Pairs
    rows_a: npt.NDArray[np.int32]
    rows_b: npt.NDArray[np.int32]
    notes: tuple[str, ...] = ()

    def needed(self) -> list[int]:
        """Every row that a pair names."""
        return np.unique(np.concatenate([self.rows_a, self.rows_b])).tolist()

    def among_readable(self, bad: list[tuple[int, str]]) -> ListedPairs:
        """The same pairs, by the rows that are left when those of images that cannot be read are gone."""
        gone = np.sort(np.array([row for row, _ in bad], dtype=np.int64))
        moved = [rows - np.searchsorted(gone, rows).astype(np.int32) for rows in (self.rows_a, self.rows_b)]
        return self._replace(rows_a=moved[0], rows_b=moved[1])


def list_pairs(pairs: Pairs, names: Names, out: Path) -> ListedPairs:
    """The pairs in an index or a table: the one place where their paths are looked up. `out` gets a list of the
    images that are not there."""
    found = distinct_pairs(pairs, *resolve(pairs, names, missing_list=out / "missing_images.txt"))
    kept = found.pairs
    genuine = int(kept.same.sum())
    if genuine in (0, len(kept)):
        left_out = "".join(f" ({note})" for note in found.notes())
        raise DataError(
            f"{pairs.source}: {genuine:,} genuine and {len(kept) - genuine:,} impostor pairs{left_out}; verification "
            "needs both kinds: add the other"
        )
    folds = check_folds(kept.same, kept.fold) if kept.fold is not None else ""
    rows_a, rows_b = (rows.astype(np.int32) for rows in (found.rows_a, found.rows_b))  # pairs may be millions
    return ListedPairs(kept, rows_a, rows_b, (*found.notes(), *filter(None, [folds])))


@dataclass(frozen=True)
class EvalInputs:
    """What is scored. `listed` has rows of `table`; `second` has its rows in the order of `table`.

    `images`: those of `table` where they were embedded now, else those that lend their pictures, or None.
    `overlap`: the images that are in the gallery too, by their files and their embeddings."""

    name: str
    table: EmbeddingTable
    images: ImageIndex | None = None
    listed: ListedPairs | None = None
    gallery: EmbeddingTable | None = None
    overlap: Overlap = NO_OVERLAP
    second: EmbeddingTable | None = None
    weights: Weights | None = None
    second_weights: Weights | None = None
    warnings: tuple[str, ...] = ()
    """That images of `images` are training images of the weights, for both models."""


def open_inputs(config: EvalConfig) -> EvalInputs:
    """Everything that is to be scored. What can be wrong with names and files is found before the long work.

    Beside embeddings that were given, `data` only lends its pictures to the report, or to a second model."""
    pairs = read_pairs(config.pairs) if config.pairs else None
    weights = open_model(config.weights) if config.weights else None
    compared = bool(config.compare) and not is_stored(config.compare)
    second_weights = open_model(config.compare) if compared else None
    if pairs is not None and pairs.fold is not None:
        check_folds(pairs.same, pairs.fold)
    config.out.mkdir(parents=True, exist_ok=True)
    remove_lists(config.out)
    images = with_faces(config, read_images(config, pairs), weights)
    table = EmbeddingTable.load(config.embeddings) if config.embeddings else None
    listed = None
    if pairs is not None:
        names = table if table is not None else images
        assert names is not None
        listed = list_pairs(pairs, names, config.out)
    gallery, gallery_images = open_gallery(config)
    gallery_images = with_faces(config, gallery_images, weights, GALLERY)
    second = EmbeddingTable.load(config.compare) if is_stored(config.compare) else None
    require(
        second_weights is None or images is not None, "--compare with weights needs their images: give --data"
    )
    needed = listed.needed() if listed is not None and weights is not None else []
    own_images = None
    if weights is not None:
        assert images is not None
        embedded = embed(config, weights, images, needed)
        table, own_images = embedded.table, among_readable(images, embedded.bad)
        listed = listed.among_readable(embedded.bad) if listed is not None else None
    assert table is not None
    if second_weights is not None:
        assert images is not None
        second = embed(config, second_weights, images, needed, SECOND).table
    if gallery_images is not None:
        assert weights is not None
        embedded = embed(config, weights, gallery_images, [], GALLERY)
        gallery, gallery_images = embedded.table, among_readable(gallery_images, embedded.bad)
    elif gallery is not None:
        check_sizes(table, gallery, "the gallery")
    return EvalInputs(
        config.weights or str(config.embeddings),
        table,
        images,
        listed,
        gallery,
        NO_OVERLAP
        if gallery is None
        else find_overlap(ImageSet(table, own_images), ImageSet(gallery, gallery_images)),
        None if second is None else aligned(table, second),
        weights,
        second_weights,
        warnings_of(images, weights, second_weights),
    )


def warnings_of(images: ImageIndex | None, *models: Weights | None) -> tuple[str, ...]:
    """A warning for each of some weights that were trained on the images, or seem to take their colours wrongly."""
    if images is None:
        return ()
    found = [(each.name, seen_in_training(each, images)) for each in models if each is not None]
    colours = [colours_in(each.onnx, images) for each in models if each is not None]
    trained = [seen.text(name) for name, seen in found if seen is not None]
    return tuple(filter(None, [*trained, *colours]))


def read_images(config: EvalConfig, pairs: Pairs | None) -> ImageIndex | None:
    """The images of `data`, or else those that the pairs name; None where embeddings are all there is."""
    if config.data:
        return open_images(config.data)
    if config.embeddings or pairs is None:
        return None
    if pairs.holds_images:
        return open_images(pairs.source)
    try:
        return index_files(pairs.paths(), Path(pairs.source).parent)
    except DataError as error:
        raise DataError(f"{error}; or say with --data which images the pairs name") from None


def with_faces(
    config: EvalConfig, images: ImageIndex | None, weights: Weights | None, of: str = ""
) -> ImageIndex | None:
    """With --align the faces of the images, cut into the out folder where they are photographs; else the images."""
    if images is None or not config.align:
        return images
    require(weights is not None, "--align cuts faces for --weights; name some, or leave it out")
    assert weights is not None
    options = AlignOptions(size=weights.crop_side, given="auto")
    found = cut_faces(
        images, config.out / (f"faces_{of}" if of else "faces"), options, workers=config.workers
    )
    say(*filter(None, [found.text()]))
    return found.index


def open_gallery(config: EvalConfig) -> tuple[EmbeddingTable | None, ImageIndex | None]:
    """The gallery: embeddings, or images that are to be embedded, or neither."""
    if not config.gallery:
        return None, None
    if is_stored(config.gallery[0]):
        return EmbeddingTable.load(config.gallery[0]), None
    require(bool(config.weights), "--gallery of images needs --weights; beside --embeddings give an .npz")
    return None, open_images(config.gallery)


def embed(
    config: EvalConfig, weights: Weights, index: ImageIndex, needed: list[int], of: str = ""
) -> Embedded:
    """Embed the images and keep the table in the out folder. `of`: which set, as for embed_images."""
    runtime = weights.runtime(
        "auto" if weights.onnx is not None else config.runtime, config.device, len(index)
    )
    embedder = weights.network(config.device, runtime)
    embedded = embed_images(config, embedder, index, outcome="not scored", of=of, needed=needed)
    embedded.table.save(config.out / (f"embeddings_{of}.npz" if of else "embeddings.npz"))
    return embedded


def aligned(first: EmbeddingTable, second: EmbeddingTable) -> EmbeddingTable:
    """The second model's rows in the order of the first's paths, with the first's identities and groups.

    Raises DataError where an image of the first is not in the second, where a path tells no image from another,
    or where the tables do not agree on who is one person; their names may differ."""
    alike = np.array_equal(first.paths, second.paths)
    rows = np.arange(len(first)) if alike else matching_rows(first, second)
    check_people(first, second.identities[rows])
    return EmbeddingTable(
        second.embeddings[rows], first.identities, first.paths, first.groups, second.weights
    )


def matching_rows(first: EmbeddingTable, second: EmbeddingTable) -> npt.NDArray[np.int64]:
    """The row of the second table of each path of the first."""
    for table, which in ((first, "first"), (second, "second")):
        twice = table.standing_twice()
        if twice:
            raise DataError(
                f"{len(twice)} of the paths of the {which} model's embeddings are on several rows: "
                f"{first_few(twice, 5)}; name each image once, or list the same paths in the same order for both models"
            )
    paths = first.paths.tolist()
    rows = np.array([-1 if (row := second.find(path)) is None else row for path in paths])
    missing = [path for path, row in zip(paths, rows, strict=True) if row < 0]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(first)} images have no embedding of the second model: {first_few(missing, 5)}; "
            "both models must embed the same images, under the same paths"
        )
    return rows


def check_people(first: EmbeddingTable, other: npt.NDArray[np.str_]) -> None:
    """Raise DataError where the identities `other` (N,) of the same images make other people of them."""
    if np.array_equal(first.identities, other):
        return
    (start_W, label_N), (other_start_W, other_N) = (
        np.unique(names, return_index=True, return_inverse=True)[1:] for names in (first.identities, other)
    )
    differs = (other_N != other_N[start_W[label_N]]) | (label_N != label_N[other_start_W[other_N]])
    if differs.any():
        row = int(differs.argmax())
        raise DataError(
            f"{differs.sum()} of {len(first)} images are of another person for the second model: first "
            f"{first.name(row)}, {str(first.identities[row])!r} and {str(other[row])!r}; give both models the "
            "same identities"
        )


def check_sizes(table: EmbeddingTable, other: EmbeddingTable, what: str) -> None:
    """Raise DataError where two tables cannot come from one model."""
    size, other_size = table.embeddings.shape[1], other.embeddings.shape[1]
    if size != other_size:
        raise DataError(
            f"{what} has embeddings of {other_size} numbers, the images of {size}; use one model for both"
        )
