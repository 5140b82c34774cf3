"""What an evaluation is of: weights, images, pairs and embeddings, each resolved once and handed down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric import distributed
from facemetric.commands.embedding import (
    COHORT,
    GALLERY,
    SECOND,
    embed_images,
    is_stored,
    open_images,
    seen_in_training,
    suspicions_in,
)
from facemetric.commands.evaluating.overlap import ImageSet, among_readable, find_overlap
from facemetric.commands.evaluating.templates import Templates, open_templates
from facemetric.commands.out_folder import claim_out
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
from facemetric.evaluation.templates import Pooled
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.machine import pick_device, say
from facemetric.model.weights.opened import Weights, open_model


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
class Model:
    """A model that is compared with the first: its name, its embeddings of the same images in the same order, and its
    weights where it embedded them now."""

    name: str
    table: EmbeddingTable
    weights: Weights | None = None


@dataclass(frozen=True)
class EvalInputs:
    """What is scored. `listed` has rows of `table`; the tables of `others` have its rows in its order.

    `images`: those of `table` where they were embedded now, else those that lend their pictures, or None.
    `overlap`: the images that are in the gallery too, by their files and their embeddings. With templates, `table`,
    `gallery` and the others have a row for each template, and `pooled` says what these were made of."""

    name: str
    table: EmbeddingTable
    images: ImageIndex | None = None
    listed: ListedPairs | None = None
    gallery: EmbeddingTable | None = None
    overlap: Overlap = NO_OVERLAP
    others: tuple[Model, ...] = ()
    weights: Weights | None = None
    warnings: tuple[str, ...] = ()
    """That images of `images` are training images of the weights, and what was guessed of ONNX files."""
    cohort: EmbeddingTable | None = None
    pooled: Pooled | None = None
    device: torch.device | None = None
    """Where tiles of pairs and neighbours are made; None for the threads of the CPU."""


def open_inputs(config: EvalConfig) -> EvalInputs:
    """Everything that is to be scored. What can be wrong with names and files is found before the long work.

    Beside embeddings that were given, `data` only lends its pictures to the report, or to other models."""
    found = find_inputs(config)
    weights, images = found.weights, found.images
    pairs_of_images = found.listed is not None and weights is not None and found.templates is None
    needed = found.listed.needed() if found.listed is not None and pairs_of_images else []
    table, listed = found.table, found.listed
    bad: list[tuple[int, str]] = []
    if weights is not None:
        assert images is not None
        table, bad = embed(config, weights, images, needed)
        listed = listed.among_readable(bad) if listed is not None and pairs_of_images else listed
    assert table is not None
    device = device_of_tiles(config.device)
    own = ImageSet(table, among_readable(images, bad) if weights is not None else None)
    others = open_others(config, found.others, table, images, needed)
    gallery, cohort = (
        embed_set(config, weights, each, of)
        for each, of in ((found.gallery, GALLERY), (found.cohort, COHORT))
    )
    for each, what in ((gallery, "the gallery"), (cohort, "the cohort")):
        if each is not None:
            check_sizes(table, each.table, what)
    pooled = None
    if found.templates is not None:
        rows = [row for row, _ in bad]
        tables, pooled = found.templates.pool(table, rows, config.pool)
        others = tuple(
            replace(each, table=found.templates.pool(each.table, rows, config.pool)[0].table)
            for each in others
        )
        own = ImageSet(tables.table)
        gallery = gallery if tables.gallery is None else ImageSet(tables.gallery)
    return EvalInputs(
        config.weights or str(config.embeddings),
        own.table,
        images,
        listed,
        None if gallery is None else gallery.table,
        NO_OVERLAP if gallery is None else find_overlap(own, gallery, device),
        others,
        weights,
        warnings_of(images, weights, *found.others.values()),
        None if cohort is None else cohort.table,
        pooled,
        device,
    )


def device_of_tiles(wanted: str) -> torch.device | None:
    """The GPU that makes the tiles of pairs and neighbours, where --device is one; None for the threads of the CPU."""
    device = pick_device(wanted)
    return device if device.type == "cuda" else None


class Sources(NamedTuple):
    """A set beside the first: embeddings that were given, or images that are to be embedded, or neither."""

    table: EmbeddingTable | None = None
    images: ImageIndex | None = None


class Found(NamedTuple):
    """What the options name, before anything is embedded. `others`: weights by name, None where embeddings are
    stored."""

    weights: Weights | None
    others: Mapping[str, Weights | None]
    images: ImageIndex | None
    table: EmbeddingTable | None
    listed: ListedPairs | None
    templates: Templates | None
    gallery: Sources
    cohort: Sources


def find_inputs(config: EvalConfig) -> Found:
    """Open what the options name, and look up what they name in one another."""
    pairs = read_pairs(config.pairs) if config.pairs and not config.templates else None
    weights = open_model(config.weights) if config.weights else None
    others = {name: None if is_stored(name) else open_model(name) for name in dict.fromkeys(config.compare)}
    opened = {"weights": weights} | {f"weights {name}": each for name, each in others.items()}
    distributed.check_alike(
        {f"the {name}": each.fingerprint for name, each in opened.items() if each is not None}
    )
    if pairs is not None and pairs.fold is not None:
        check_folds(pairs.same, pairs.fold)
    images = read_images(config, pairs)
    gallery = open_set_of(config, config.gallery, "--gallery")
    cohort = open_set_of(config, config.cohort, "--cohort")
    sets = {"images": images, "gallery": gallery.images, "cohort": cohort.images}
    claim_out(config, **opened, **sets)
    images = with_faces(config, images, weights)
    table = EmbeddingTable.load(config.embeddings) if config.embeddings else None
    names: Names | None = table if table is not None else images
    templates = open_templates(config, table, images)
    if templates is not None:
        pairs, names = templates.pairs(config.pairs), templates.names
        if weights is not None:
            assert images is not None
            images, templates = templates.needed_images(images)
    listed = None
    if pairs is not None:
        assert names is not None
        listed = list_pairs(pairs, names, config.out)
    gallery = gallery._replace(images=with_faces(config, gallery.images, weights, GALLERY))
    cohort = cohort._replace(images=with_faces(config, cohort.images, weights, COHORT))
    require(
        images is not None or not any(others.values()),
        "--compare with weights needs their images: give --data",
    )
    return Found(weights, others, images, table, listed, templates, gallery, cohort)


def open_set_of(config: EvalConfig, sources: Sequence[str], option: str) -> Sources:
    """The gallery or the cohort."""
    if not sources:
        return Sources()
    if is_stored(sources[0]):
        return Sources(EmbeddingTable.load(sources[0]))
    require(bool(config.weights), f"{option} of images needs --weights; beside --embeddings give an .npz")
    return Sources(images=open_images(sources))


def embed_set(config: EvalConfig, weights: Weights | None, sources: Sources, of: str) -> ImageSet | None:
    """The embeddings of a set, and the images that they are of where they were embedded now; None where there is no
    such set."""
    if sources.images is None:
        return None if sources.table is None else ImageSet(sources.table)
    assert weights is not None
    embedded = embed(config, weights, sources.images, [], of)
    return ImageSet(embedded.table, among_readable(sources.images, embedded.bad))


def open_others(
    config: EvalConfig,
    others: Mapping[str, Weights | None],
    table: EmbeddingTable,
    images: ImageIndex | None,
    needed: list[int],
) -> tuple[Model, ...]:
    """The embeddings of the other models (weights by name, None where embeddings are stored), in the order of the
    first's table."""
    models = []
    for number, (name, weights) in enumerate(others.items(), 2):
        if weights is None:
            found = EmbeddingTable.load(name)
        else:
            assert images is not None
            of = SECOND if number == 2 else f"model_{number}"
            found = embed(config, weights, images, needed, of).table
        models.append(Model(name, aligned(table, found), weights))
    return tuple(models)


def warnings_of(images: ImageIndex | None, *models: Weights | None) -> tuple[str, ...]:
    """What to know of some weights: that they were trained on the images, or seem to take them wrongly, and
    what was guessed of an ONNX file."""
    guessed = [note for each in models if each is not None and each.onnx for note in each.onnx.notes]
    if images is None:
        return tuple(guessed)
    found = [(each.name, seen_in_training(each, images)) for each in models if each is not None]
    suspected = [text for each in models if each is not None for text in suspicions_in(each.onnx, images)]
    trained = [seen.text(name) for name, seen in found if seen is not None]
    return tuple(filter(None, [*trained, *suspected, *guessed]))


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
