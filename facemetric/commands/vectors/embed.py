"""What `facemetric embed` does: pictures to one table of embeddings, in parts that survive a kill.

Under torchrun each process makes its share of the parts; the first one joins them. The table is that of one process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from facemetric import distributed
from facemetric.commands.embedding import Network, open_images
from facemetric.commands.vectors.files import Table, check_suffix, write_missing, write_table
from facemetric.commands.vectors.parts import FINISHED, PartBuilder, Parts, list_of_missing
from facemetric.commands.vectors.pictures import NO_FACE, UNREADABLE, Batch, batches_in, finder_of
from facemetric.config import EmbedConfig, check_ranges, config_dict, require
from facemetric.config.calls import takes_options
from facemetric.data.batches import chunks
from facemetric.data.index import ImageIndex
from facemetric.errors import ConfigError, DataError, plural
from facemetric.evaluation.embed import evaluating
from facemetric.evaluation.table import EmbeddingTable
from facemetric.files import write_text_whole
from facemetric.machine import progress_bar, say
from facemetric.model.onnx.colour_check import CROPS
from facemetric.model.onnx.embedder import OnnxEmbedder
from facemetric.model.weights.opened import Weights, open_model
from facemetric.training import peers

if TYPE_CHECKING:
    import pandas as pd

DECIDES = ("faces", "detector", "min_quality", "every_face", "flip", "batch_size")  # options of the result


@dataclass(frozen=True)
class EmbeddedFile:
    """What an embed wrote: the table, how many rows it has, of how many pictures; those without a face, and those
    that do not read, are in `left_out` with the reason. `runtime` computed the embeddings: torch or onnx."""

    file: Path
    rows: int
    pictures: int
    without_face: int
    unreadable: int
    runtime: str
    left_out: Path | None = None
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """What the terminal says."""
        engine = "ONNX Runtime" if self.runtime == "onnx" else "torch"
        lines = [
            f"{plural(self.rows, 'row')} of {plural(self.pictures, 'picture')} in {self.file}, by {engine}"
        ]
        if self.left_out is not None:
            parts = [f"no face in {self.without_face:,}"] * (self.without_face > 0)
            parts += [f"{self.unreadable:,} cannot be read"] * (self.unreadable > 0)
            lines.append(f"{' and '.join(parts)}: {self.left_out}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def table(self) -> EmbeddingTable:
        """The embeddings with path and identity of each; of a .parquet or .npz."""
        return EmbeddingTable.load(self.file)

    def to_frame(self) -> pd.DataFrame:
        """The table as pandas has it: a row for each face."""
        import pandas as pd

        if self.file.suffix == ".csv":
            return pd.read_csv(self.file)
        return pd.read_parquet(self.file) if self.file.suffix == ".parquet" else self.table().to_frame()


@takes_options(EmbedConfig)
def embed(config: EmbedConfig) -> EmbeddedFile:
    """Pictures to one table of embeddings; the options are those of EmbedConfig.

    `embed("photos", weights="faces-112", out="E.parquet")` is
    `facemetric embed photos --weights faces-112 --out E.parquet`; for a few pictures in Python there is
    `load_embedder("faces-112").embed(...)`. Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_embed(config)


def run_embed(config: EmbedConfig) -> EmbeddedFile:
    """embed, from a config."""
    check_ranges(config)
    require(bool(config.data), "embed needs pictures: `facemetric embed PHOTOS --weights W --out E.parquet`")
    check_suffix(config.out)
    with peers.joined(config.device) as device:
        peers.same_program(config)
        return embed_on(device, config)


def embed_on(device: str, config: EmbedConfig) -> EmbeddedFile:
    """run_embed, on a device."""
    first = distributed.rank() == 0
    if (done := distributed.from_first(finished_before(config.out) if first else None)) is not None:
        return done
    if first:
        check_free(config.out)
    weights = open_model(config.weights)
    distributed.check_alike({"the weights": weights.fingerprint})
    finder_of(
        config, weights.preprocess, weights.pictures
    )  # a misspelt one is an error before the first picture
    index = open_images(config.data, loose=True)
    parts = Parts(config.out, len(index))
    runtime = distributed.from_first(runtime_of(config, weights, parts) if first else "")
    if first:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        parts.begin(job_of(config, weights, index, runtime))
        network = weights.network(device, runtime)
    distributed.barrier()  # the exported network is made once
    if not first:
        network = weights.network(device, runtime)
    try:
        notes = embed_parts(config, network, weights, index, parts)
        distributed.barrier()
        return distributed.from_first(
            finish(config, Table(parts, index, weights.fingerprint), runtime, notes) if first else None
        )
    finally:
        parts.release()


def check_free(out: Path) -> None:
    """ConfigError where the table, or the list beside it, is there already. A job that goes on may have the list."""
    begun = bool(Parts(out, 0).known_job())
    for file in (out,) if begun else (out, list_of_missing(out)):
        require(not file.exists(), f"{file} is there already, and nothing is overwritten; name another --out")


def runtime_of(config: EmbedConfig, weights: Weights, parts: Parts) -> str:
    """torch or onnx: what was asked for, what the parts that are there were made with, or what pays."""
    before = str(parts.known_job().get("runtime", ""))
    wanted = before if config.runtime == "auto" and before else config.runtime
    return weights.runtime(wanted, config.device, parts.pictures)


def job_of(config: EmbedConfig, weights: Weights, index: ImageIndex, runtime: str) -> dict[str, Any]:
    """What decides the result; the names are told where it is another one."""
    options = {name: value for name, value in config_dict(config).items() if name in DECIDES}
    return {"pictures": index.state_key, "weights": weights.fingerprint, "runtime": runtime, **options}


def embed_parts(
    config: EmbedConfig, network: Network, weights: Weights, index: ImageIndex, parts: Parts
) -> tuple[str, ...]:
    """Make this process's share of the parts that are not there; what is to be said of the network."""
    pending = distributed.from_first(parts.pending())  # as they were before one of the processes began
    done = parts.count - len(pending)
    if done:
        say(f"{done:,} of {parts.count:,} parts are in {parts.folder}; going on with the rest")
    mine = pending[distributed.rank() :: distributed.world_size()]
    plan = [
        (number, parts.rows(number)[rows])
        for number in mine
        for rows in chunks(len(parts.rows(number)), config.batch_size)
    ]
    found = batches_in(index, [rows for _, rows in plan], config, network.preprocess, weights.pictures)
    crops = FirstCrops(network)
    building, at = PartBuilder(), -1
    with (
        progress_bar(total=len(plan) * config.batch_size, desc="embedding", unit="image") as bar,
        evaluating(network),
    ):
        for (number, rows), batch in zip(plan, found, strict=True):
            if number != at and at >= 0:
                parts.save(at, building)
                building = PartBuilder()
            at = number
            building.add(batch, network.embed_pixels(batch.pixels, flip=config.flip))
            crops.add(batch)
            bar.update(len(rows))
    if at >= 0:
        parts.save(at, building)
    return (*getattr(network, "notes", ()), *crops.notes())


class FirstCrops:
    """The first crops of a job by anybody's ONNX file, to see whether it takes them rightly."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.pixels: list[np.ndarray] = []
        self.wanted = CROPS if isinstance(network, OnnxEmbedder) and not network.metadata else 0

    def add(self, batch: Batch) -> None:
        """Keep what is needed of a batch."""
        self.pixels += list(batch.pixels[: max(0, self.wanted - len(self.pixels))])

    def notes(self) -> tuple[str, ...]:
        """What they let suspect."""
        if not self.pixels or not isinstance(self.network, OnnxEmbedder):
            return ()
        return self.network.suspicions(np.stack(self.pixels))


def finish(config: EmbedConfig, table: Table, runtime: str, notes: Sequence[str]) -> EmbeddedFile:
    """Join the parts, list what has no row, remove the parts. DataError where not one picture has a row."""
    kinds = [each.kind for each in table.parts.missing()]
    rows = sum(len(part["rows"]) for part in table.rows(()))
    left_out = list_of_missing(config.out) if kinds else None
    if left_out is not None:
        write_missing(table, left_out)
    if not rows:
        first = next(table.parts.missing())
        table.parts.remove()
        raise DataError(
            f"none of {plural(table.parts.pictures, 'picture')} has a face to embed, the first is "
            f"{table.index.name(first.row)} ({first.reason}); all are in {left_out}: mend them, or see --faces"
        )
    found = EmbeddedFile(
        config.out,
        rows,
        table.parts.pictures,
        kinds.count(NO_FACE),
        kinds.count(UNREADABLE),
        runtime,
        left_out,
        tuple(notes),
    )

    def about_to_appear(staged: Path) -> None:
        if config.out.exists():
            raise ConfigError(
                f"{config.out} has appeared meanwhile, and nothing is overwritten; name another --out"
            )
        state = staged.stat()
        record = {"size": state.st_size, "mtime_ns": state.st_mtime_ns, **counts_of(found)}
        write_text_whole(table.parts.folder / FINISHED, json.dumps(record) + "\n")

    write_table(table, config.out, about_to_appear)
    table.parts.remove()
    return found


def counts_of(found: EmbeddedFile) -> dict[str, Any]:
    """What is kept of a result beside the file itself."""
    return {
        "rows": found.rows,
        "pictures": found.pictures,
        "without_face": found.without_face,
        "unreadable": found.unreadable,
        "runtime": found.runtime,
    }


def finished_before(out: Path) -> EmbeddedFile | None:
    """The result of a job that was killed after its table appeared and before its parts were gone, else None."""
    parts = Parts(out, 0)
    try:
        record = json.loads((parts.folder / FINISHED).read_text())
        state = out.stat()
    except (OSError, ValueError):
        return None
    if (record.pop("size"), record.pop("mtime_ns")) != (state.st_size, state.st_mtime_ns):
        return None
    parts.remove()
    left_out = list_of_missing(out)
    return EmbeddedFile(out, left_out=left_out if left_out.exists() else None, **record)
