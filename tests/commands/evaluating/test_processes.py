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
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.errors import DataError, FacemetricError
from facemetric.evaluation import nearest, ranks
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


@pytest.fixture
def beside(table: Path, tmp_path: Path) -> Path:
    """Beside the table: pairs of its images, a cohort, a gallery, and two lists of templates with pairs of them."""
    first = EmbeddingTable.load(table)
    rng = np.random.default_rng(3)
    pairs = make_pairs(first.identities, count=400, folds=4)
    write_pairs(tmp_path / "pairs.csv", name_pairs(pairs, first.paths.tolist()))
    cohort = rng.normal(size=(700, 16))
    EmbeddingTable(cohort, np.arange(700), np.arange(700).astype(str)).save(tmp_path / "cohort.npz")
    first.rows(np.flatnonzero(first.identities < "p150")[::4]).save(tmp_path / "gallery.npz")
    lists: dict[bool, list[str]] = {True: [], False: []}
    for row, (path, name) in enumerate(zip(first.paths.tolist(), first.identities.tolist(), strict=True)):
        enrolled = row % 3 == 0 and name < "p150"
        lists[enrolled].append(f"{1000 * (row % 3 + 1) + int(name[1:])},{name},{path}\n")
    for enrolled, lines in lists.items():
        text = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "".join(lines)
        (tmp_path / ("enrolled.csv" if enrolled else "probes.csv")).write_text(text)
    known = sorted({line.split(",")[0] for line in lists[False]})
    genuine = [(a, f"3{a[1:]}") for a in known if a[0] == "2" and f"3{a[1:]}" in known]
    several = [*genuine, *(tuple(rng.choice(known, 2, replace=False)) for _ in range(500))]
    (tmp_path / "matches.csv").write_text("".join(f"{a},{b}\n" for a, b in several))
    return tmp_path


BESIDE: dict[str, dict[str, Any]] = {
    "gallery": {
        "pairs": "pairs.csv",
        "cohort": "cohort.npz",
        "cohort_top": 20,
        "gallery": "gallery.npz",
    },
    "templates": {"templates": "probes.csv", "gallery_templates": "enrolled.csv", "pairs": "matches.csv"},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_is_scored_beside_the_images(
    name: str, table: Path, beside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "BUDGET_MIB", 0.3)  # several groups of queries: each process has some
    monkeypatch.setattr(ranks, "ROWS", 100)
    options = {key: beside / value if "." in str(value) else value for key, value in BESIDE[name].items()}
    one, three = (files_of(in_worlds(world, beside, embeddings=table, **options)) for world in (1, 3))
    for family in (name, "neighbours", "identification", "verification"):
        assert f'"{family}":'.encode() in one["metrics.json"]
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
