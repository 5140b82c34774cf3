"""What `facemetric data convert` does: images of any source to tar shards, in a folder that can be gone on with.

It imports no torch."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from facemetric.config import ConvertConfig, check_ranges, require
from facemetric.config.calls import takes_options
from facemetric.data.bad_images import BadImageLog
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.readers.shards import Shard, ShardWriter, read_back
from facemetric.data.readers.sources import UNFINISHED
from facemetric.errors import ConfigError, DataError, given, plural
from facemetric.files import Lock, write_text_whole
from facemetric.machine import MIB, progress_bar, say
from facemetric.training.run.folder import BAD_IMAGES, LOCK

FINISHED = "converted.json"


@dataclass(frozen=True)
class Converted:
    """Shards that were written and read back: how many images of how many identities, and the images left out."""

    out: Path
    shards: int
    images: int
    identities: int
    size: int
    bad: int

    def text(self) -> str:
        """What the terminal says."""
        lines = [
            f"{plural(self.images, 'image')} of {plural(self.identities, 'identity', 'identities')} in "
            f"{plural(self.shards, 'shard')} in {self.out}, {self.size / MIB:,.1f} MiB, counted again by the tar reader"
        ]
        if self.bad:
            lines.append(f"{self.bad:,} cannot be read and were left out: {self.out / BAD_IMAGES}")
        return "\n".join(lines)


@takes_options(ConvertConfig)
def convert_data(config: ConvertConfig) -> Converted:
    """Write images of any source to tar shards; the options are those of ConvertConfig.

    `convert_data("train.rec", out="shards")` is `facemetric data convert train.rec --out shards`.
    Raises ConfigError or DataError, each with what to change."""
    return run_convert(config)


def run_convert(config: ConvertConfig) -> Converted:
    """convert_data, from a config."""
    check_convert(config)
    index = read_index(config.data)
    say(*index.notes)
    config.out.mkdir(parents=True, exist_ok=True)
    lock = Lock(config.out / LOCK)
    try:
        return _convert(config, index)
    finally:
        lock.release()
        (config.out / LOCK).unlink(missing_ok=True)


def check_convert(config: ConvertConfig) -> None:
    """Raise ConfigError for what needs no image to be told."""
    check_ranges(config)
    require(
        bool(config.data), "no DATA was given; name a folder, a .rec, .parquet or .tar, or a folder of such"
    )
    if config.out.is_dir():
        found = {entry.name for entry in os.scandir(config.out)} - {LOCK, BAD_IMAGES}
        found -= {path.name for path in remnants(config.out)}
        if found and not found & {UNFINISHED, FINISHED}:
            raise ConfigError(
                f"{given('--out', config.out)} holds other files ({min(found)}, ...); name a new folder"
            )


def _convert(config: ConvertConfig, index: ImageIndex) -> Converted:
    out = config.out
    asked = {"source": index.state_key, "shard_mib": config.shard_mib, "webdataset": config.webdataset}
    shards, finished = _begun(out, asked)
    log = BadImageLog(out / BAD_IMAGES, len(index), config.max_bad)
    for left in remnants(out):
        left.unlink()
    if not finished:
        writer = ShardWriter(
            index,
            out,
            size=config.shard_mib * MIB,
            webdataset=config.webdataset,
            bad=lambda row, reason: log.add(index.name(row), reason),
        )
        with progress_bar(total=len(index), desc="writing shards", unit=" images") as bar:
            bar.update(shards[-1].end if shards else 0)
            _note(out / UNFINISHED, asked, shards)
            while (first := shards[-1].end if shards else 0) < len(index):
                shards.append(writer.write(len(shards), first, bar.update))
                _note(out / UNFINISHED, asked, shards)
    written = [shard for shard in shards if shard.images]
    held = read_back(out, written)
    if held.images + len(log) != len(index):
        raise DataError(
            f"{out} holds {held.images:,} images, and {len(index):,} were to be written ({len(log):,} cannot be read); "
            "remove it and convert again"
        )
    if not finished:
        _note(out / FINISHED, asked, shards)
    (out / UNFINISHED).unlink(missing_ok=True)
    return Converted(out, len(written), held.images, len(held.identities), held.size, len(log))


def remnants(out: Path) -> list[Path]:
    """Files that a process which was killed had not finished."""
    return [path for name in ("shard-", UNFINISHED, FINISHED) for path in out.glob(f".{name}*")]


def _begun(out: Path, asked: dict[str, object]) -> tuple[list[Shard], bool]:
    """The shards that an earlier start wrote, and whether it finished. ConfigError where it was of something else."""
    for name in (FINISHED, UNFINISHED):
        try:
            found = json.loads((out / name).read_text(encoding="utf-8"))
            shards = [Shard(*shard) for shard in found.pop("shards")]
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(f"{out / name} is damaged; remove {out}, or name another --out") from None
        if found != asked:
            raise ConfigError(
                f"{out} holds shards of other images or of other options; remove it, or name another --out"
            )
        return shards, name == FINISHED
    return [], False


def _note(path: Path, asked: dict[str, object], shards: list[Shard]) -> None:
    write_text_whole(path, json.dumps(asked | {"shards": shards}, indent=1) + "\n", durable=True)
