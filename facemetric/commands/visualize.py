"""What `facemetric visualize` does: embeddings for TensorBoard's projector, and pictures of them in the plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric.commands.embedding import (
    TRAIN,
    VALIDATION,
    check_config,
    embed_images,
    open_images,
)
from facemetric.commands.out_folder import claim_out, results_come
from facemetric.config import (
    StageConfig,
    VisualizeConfig,
    check_least,
    make_config,
    require,
)
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex
from facemetric.errors import ConfigError, plural
from facemetric.evaluation.table import EmbeddingTable
from facemetric.machine import say
from facemetric.model.weights.opened import Weights, open_weights
from facemetric.report.map import cell_size, choose_images, joined, lay_out, write_projector
from facemetric.report.pictures import Pictures, make_sprite
from facemetric.report.plots import draw_map
from facemetric.training.split import SPLIT_OPTIONS, read_split

ALL = "all"


class Part(NamedTuple):
    """Embeddings of some images: all that were given, or those of the training or the validation people."""

    name: str
    table: EmbeddingTable
    images: ImageIndex | None


@takes_options(VisualizeConfig)
def visualize(config: VisualizeConfig) -> Path:
    """Show what weights make of images; the options are those of VisualizeConfig. Returns the folder.

    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_visualize(config)


def run_visualize(config: VisualizeConfig) -> Path:
    """visualize, from a config."""
    check_visualize(config)
    parts = [given(config)] if config.embeddings else embed(config)
    results_come(config)
    show_in_projector(config, parts)
    for part in parts:
        draw_part(config, part)
    say(f"see them turn: tensorboard --logdir {config.out}")
    return config.out


def check_visualize(config: VisualizeConfig) -> None:
    """Raise ConfigError where options do not go together, or a number is out of its range."""
    require(bool(config.weights) != bool(config.embeddings), "give one of --weights and --embeddings")
    check_config(config)
    check_least(config, {"images": 2, "map_images": 2})


def given(config: VisualizeConfig) -> Part:
    """Embeddings from a file, with the images of `data` where there are some."""
    assert config.embeddings is not None
    table = EmbeddingTable.load(config.embeddings)
    claim_out(config)
    rows = choose_images(table.identities, config.images, config.seed)
    say_share(len(rows), len(table), config.seed)
    table = EmbeddingTable(table.embeddings[rows], table.identities[rows], table.paths[rows])
    return Part(ALL, table, open_images(config.data) if config.data else None)


def embed(config: VisualizeConfig) -> list[Part]:
    """Embed the images that are shown of each part, and only those."""
    weights = open_weights(config.weights)  # before images are read
    named = open_images(config.data) if config.data else None
    claim_out(config, weights=weights, images=named)
    indexes = {ALL: named} if named is not None else dict(parts_of_training(config, weights))
    embedder = weights.load(config.device)
    parts = []
    for name, index in indexes.items():
        rows = choose_images(index.identity, config.images // len(indexes), config.seed)
        say_share(len(rows), len(index), config.seed, name)
        shown = index.select(rows)
        of = "" if name == ALL else name
        table = embed_images(config, embedder, shown, outcome="not shown", of=of).table
        parts.append(Part(name, table, shown))
    return parts


def parts_of_training(config: VisualizeConfig, weights: Weights) -> Iterator[tuple[str, ImageIndex]]:
    """The images that the weights were trained on, and their validation images."""
    origin = weights.config["facemetric"].get("provenance") or {}
    options = {k: v for k, v in (origin.get("options") or {}).items() if k in SPLIT_OPTIONS}
    if not options.get("data"):
        raise ConfigError(f"{config.weights} does not say what it was trained on; name images as DATA")
    split = read_split(make_config(StageConfig, **options), config.out, side=weights.crop_side)
    if split.origin.data != origin.get("data_fingerprint"):
        say("the data has changed since the weights were trained on it")
    yield TRAIN, split.train
    if split.val is not None:
        yield VALIDATION, split.val


def say_share(shown: int, total: int, seed: int, name: str = ALL) -> None:
    """Say where not all images are shown."""
    if shown < total:
        say(
            f"{name}: {shown:,} of {total:,} images are shown, people drawn with seed {seed} (--images shows more)"
        )


def show_in_projector(config: VisualizeConfig, parts: list[Part]) -> None:
    """The projector's files, all parts in one."""
    total = sum(len(part.table) for part in parts)
    cell = cell_size(total)
    squares = (
        square
        for part in parts
        for square in Pictures(part.table, part.images).squares(range(len(part.table)), cell)
    )
    sprite = make_sprite(squares, total, cell)
    names = [part.name for part in parts for _ in range(len(part.table))]
    file = write_projector(config.out, joined([part.table for part in parts]), names, sprite)
    say(f"{total:,} embeddings for TensorBoard's projector: {file}")


def draw_part(config: VisualizeConfig, part: Part) -> None:
    """The part in the plane as a png: t-SNE, or the embeddings themselves where they are two numbers."""
    rows = choose_images(part.table.identities, config.map_images, config.seed)
    emb = part.table.embeddings[rows]
    plain = emb.shape[1] == 2
    place = emb if plain else lay_out(emb, seed=config.seed)
    name = f"{'scatter' if plain else 'tsne'}{'' if part.name == 'all' else '_' + part.name}.png"
    people = len(np.unique(part.table.identities[rows]))
    title = f"{plural(len(rows), 'image')} of {plural(people, 'identity', 'identities')}"
    title += "" if part.name == ALL else f", {part.name}"
    title += "" if plain else f"; t-SNE, seed {config.seed}"
    file = draw_map(config.out / name, place, part.table.identities[rows], title=title, axis=plain)
    say(f"picture of them: {file}")
