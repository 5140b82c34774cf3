"""`eval` under torchrun leaves the files that one process leaves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from child_processes import in_processes

from facemetric import evaluate
from facemetric.commands.evaluating import eval as eval_room
from facemetric.errors import DataError, FacemetricError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.training import peers


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Embeddings of 1,500 images of 200 people, of two groups."""
    rng = np.random.default_rng(2)
    label = rng.integers(200, size=1500)
    emb = (rng.normal(size=(200, 16))[label] + rng.normal(size=(1500, 16))).astype(np.float32)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    paths = np.array([f"{i}.png" for i in range(1500)])
    groups = {"camera": np.array(["one", "other"])[rng.integers(2, size=1500)]}
    names = np.array([f"p{i:03}" for i in label])
    EmbeddingTable(emb, names, paths, groups, "").save(tmp_path / "table.npz")
    return tmp_path / "table.npz"


def in_worlds(world: int, tmp_path: Path, *sources: str, **options: Any) -> Path:
    """The out folder of `eval` by so many processes, each run in a folder of its own: metrics.json names --out."""
    folder = tmp_path / f"run {world}"
    folder.mkdir()

    def process(rank: int) -> None:
        os.chdir(folder)
        before = os.listdir()
        found = evaluate(**options, out="out", report=False, device="cpu")
        assert found.verification is not None
        assert before in ([], ["out"])

    ended = in_processes(world, process, tmp_path / f"said {world}")
    assert ended == [0] * world, (tmp_path / f"said {world}").read_text()
    return folder / "out"


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every file but the pictures and the archives, which hold the time they were made."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".csv")}


def test_stored_embeddings_all_pairs(table: Path, tmp_path: Path) -> None:
    options = {"embeddings": table, "all_pairs": True}
    one, two, three = (files_of(in_worlds(world, tmp_path, **options)) for world in (1, 2, 3))
    assert {"metrics.json", "roc.csv"} <= set(one)
    assert b'"tpir_at_fpir"' in one["metrics.json"]
    assert two == one
    assert three == one


def test_weights_on_images(untrained: Path, faces: Path, tmp_path: Path) -> None:
    options = {"weights": str(untrained), "data": (str(faces),), "all_pairs": True, "batch_size": 16}
    options |= {"runtime": "torch"}
    folders = [in_worlds(world, tmp_path, **options) for world in (1, 2, 3)]
    one, two, three = map(files_of, folders)
    assert two == one
    assert three == one
    tables = [EmbeddingTable.load(folder / "embeddings.npz") for folder in folders]
    for other in tables[1:]:
        np.testing.assert_array_equal(other.embeddings, tables[0].embeddings)


def test_processes_with_other_data_or_options_are_refused(table: Path, tmp_path: Path) -> None:
    other = EmbeddingTable.load(table)
    other.embeddings[0] = -other.embeddings[0]
    other.save(tmp_path / "other.npz")
    (tmp_path / "0").mkdir()
    (tmp_path / "1").mkdir()
    os.link(table, tmp_path / "0" / "t.npz")
    os.link(tmp_path / "other.npz", tmp_path / "1" / "t.npz")

    def process(rank: int, seed: int) -> None:
        os.chdir(tmp_path / str(rank if not seed else 0))
        evaluate(embeddings="t.npz", all_pairs=True, out="out", device="cpu", seed=rank * seed)

    for seed, name in ((0, "embeddings="), (1, "seed=")):
        said = tmp_path / f"said {seed}"
        in_processes(2, lambda rank: process(rank, seed), said)  # noqa: B023
        text = said.read_text()
        assert f"process 1 has another value of {name} than process 0" in text
        assert "start all processes with the same options, files and versions" in text
        assert not (tmp_path / "0" / "out").exists()


def test_weights_may_lie_elsewhere_on_another_machine(untrained: Path, faces: Path, tmp_path: Path) -> None:
    for rank in range(2):
        shutil.copytree(untrained, tmp_path / str(rank))

    def process(rank: int) -> None:
        evaluate(tmp_path / str(rank), data=faces, out=tmp_path / "out", device="cpu", workers=0)

    said = tmp_path / "said"
    in_processes(2, process, said)
    assert (tmp_path / "out" / "metrics.json").exists(), said.read_text()


def test_where_one_process_ends_the_others_do(table: Path, tmp_path: Path) -> None:
    """The others wait for its tiles: they end with its reason."""

    def process(rank: int) -> None:
        os.chdir(tmp_path)
        peers.SILENCE, peers.GRACE, peers.BEAT = 60.0, 60.0, 0.2

        def fail(*arguments: Any) -> None:
            raise DataError("the disk is gone")

        if rank == 1:
            eval_room.score = fail  # type: ignore[assignment]
        with pytest.raises(FacemetricError) as caught:
            evaluate(embeddings=table, all_pairs=True, out="out", device="cpu", report=False)
        print(rank, caught.value)

    ended = in_processes(2, process, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert ended == [0, 0], said
    assert "1 the disk is gone" in said
    assert "0 process 1 ended: the disk is gone" in said
