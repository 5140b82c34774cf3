"""Embeds shards on a Ray cluster: a task for each shard, each an ordinary `embed`, and one table of all.

    python tools/embed_with_ray.py shards/ --weights faces-112 --out E.parquet --workers 2

`shards/` (what `facemetric data convert` writes) and the folder of the parts, `E.parquet.shards/`, must be seen by all
machines under one path. With `--address auto` the tasks go to the cluster that is there; without, to `--workers`
processes of this machine. A shard whose part is there is not embedded again, so the same command goes on after a stop.
`--parts` leaves the parts as they are: pandas, DuckDB and Spark read a folder of them, and billions of rows fit no
memory. facemetric and the weights must be on every machine; Ray is not a dependency: `pip install 'ray[data]'`.

Run with Ray 2.60.0 on one machine: facemetric/training/many_machines.md says what was compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from facemetric.files import write_whole

ORDER = [("identity", "ascending"), ("path", "ascending"), ("face", "ascending")]  # that of an index


def embed_shard(row: dict[str, Any]) -> dict[str, str]:
    """The part of a shard, unless it is there."""
    import facemetric as fm

    if not Path(row["part"]).exists():
        fm.embed(row["shard"], weights=row["weights"], out=row["part"], workers=0, faces=row["faces"])
    return {"part": row["part"]}


def join(parts: list[str], out: Path) -> int:
    """One table of the parts, in the order that `embed` of all shards together has; its rows."""
    tables = [parquet.read_table(part) for part in parts]
    whole = pa.concat_tables(tables).sort_by(ORDER)
    write_whole(out, lambda path: parquet.write_table(whole, path))
    return whole.num_rows


def main() -> None:
    """Embed every shard, then join."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2, help="tasks at a time")
    parser.add_argument("--address", default=None, help="of a cluster; a local one of --workers without it")
    parser.add_argument("--faces", default="auto", help="as for `facemetric embed`")
    parser.add_argument("--parts", action="store_true", help="leave the parts, join nothing")
    given = parser.parse_args()
    if given.out.exists():
        parser.error(f"{given.out} is there; name another --out")
    import ray

    folder = given.out.with_name(f"{given.out.name}.shards").absolute()
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "shard": str(shard.absolute()),
            "part": str(folder / f"{shard.stem}.parquet"),
            "weights": given.weights,
            "faces": given.faces,
        }
        for shard in sorted(given.shards.glob("*.tar"))
    ]
    ray.init(
        address=given.address, num_cpus=None if given.address else given.workers, include_dashboard=False
    )
    tasks = ray.data.TaskPoolStrategy(size=given.workers)
    done = ray.data.from_items(rows).map(embed_shard, compute=tasks).take_all()
    parts = sorted(row["part"] for row in done)
    if given.parts:
        print(f"{len(parts)} parts in {folder}")
    else:
        print(
            f"{join(parts, given.out):,} rows of {len(parts)} shards in {given.out}; the parts stay in {folder}"
        )


if __name__ == "__main__":
    main()
