"""`facemetric cluster` on what is known: an earlier run, corrections, pairs; what is gone, what contradicts."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_people import table_of

from facemetric import cluster
from facemetric.commands.clustering.groups import numbered_members
from facemetric.data.group_lists import Member
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.clustering.clusters import find_clusters
from facemetric.evaluation.table import EmbeddingTable

THRESHOLD = 0.6


def some(table: EmbeddingTable, rows: Any, file: Path) -> Path:
    return table.rows(np.asarray(rows)).save(file)


def grouped(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "clusters.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row for row in csv.DictReader(file)}


def listed(file: Path, *rows: tuple[Any, ...]) -> Path:
    with open(file, "w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return file


@pytest.fixture
def faces_table(faces: Path) -> EmbeddingTable:
    """Embeddings of 96 images of 16 people."""
    return table_of(faces)


@pytest.fixture
def table(faces_table: EmbeddingTable, tmp_path: Path) -> Path:
    return faces_table.save(tmp_path / "table.npz")


@pytest.fixture
def first(faces_table: EmbeddingTable, tmp_path: Path) -> Path:
    """A run over all but every twentieth image."""
    rows = np.flatnonzero(np.arange(96) % 20 != 3)
    cluster(
        embeddings=some(faces_table, rows, tmp_path / "old.npz"), threshold=THRESHOLD, out=tmp_path / "first"
    )
    return tmp_path / "first"


def test_five_more_photographs_leave_every_group_as_it_was(first: Path, table: Path, tmp_path: Path) -> None:
    before = grouped(first)
    fresh = find_clusters(EmbeddingTable.load(table).embeddings, THRESHOLD)
    out = tmp_path / "second"
    found = cluster(embeddings=table, threshold=THRESHOLD, onto=first, out=out)
    after = grouped(out)
    assert len(after) == 96
    assert {path: after[path]["cluster"] for path in before} == {
        p: row["cluster"] for p, row in before.items()
    }
    record = json.loads((out / "clusters.json").read_text())
    assert record["groups"]["images_kept"] == 91
    assert record["groups"]["images_new"] == 5
    new = {path: int(row["cluster"]) for path, row in after.items() if path not in before}
    old = {int(row["cluster"]) for row in before.values()}
    assert record["groups"]["images_new_in_groups_that_were_there"] == sum(n in old for n in new.values())
    assert all(n in old or n > max(old) for n in new.values())
    assert "91 images kept their group, 0 of all are confirmed; 5 new" in found.text()
    # By itself the grouping would have counted otherwise.
    named = {str(p): int(n) for p, n in zip(found.table.paths, fresh.number, strict=True)}
    assert any(named[path] != int(row["cluster"]) for path, row in before.items())
    # The csv does as well as its folder, and a run may go into the folder that it goes on from.
    again = cluster(embeddings=table, threshold=THRESHOLD, onto=first / "clusters.csv", out=first)
    np.testing.assert_array_equal(again.groups.number, found.groups.number)
    assert (first / "clusters.csv").read_text() == (out / "clusters.csv").read_text()


def test_corrections_hold_with_and_without_an_earlier_run(first: Path, table: Path, tmp_path: Path) -> None:
    before = grouped(first)
    largest = [path for path, row in before.items() if row["cluster"] == "0"]
    lone = [
        path
        for path, row in before.items()
        if row["cluster"] == str(max(int(r["cluster"]) for r in before.values()))
    ]
    assert len(largest) > 4
    rows = [("path", "cluster", "name")]
    rows += [(path, 0, "Anna, the 1st") for path in [*largest[2:], *lone]]
    rows += [(path, 70, "") for path in largest[:2]]
    corrections = listed(tmp_path / "corrections.csv", *rows)
    for onto in (first, None):
        out = tmp_path / f"out{onto is None}"
        cluster(embeddings=table, threshold=THRESHOLD, onto=onto, corrections=corrections, out=out)
        after = grouped(out)
        for path, number, name in rows[1:]:
            assert (after[path]["cluster"], after[path]["name"], after[path]["confirmed"]) == (
                str(number),
                name,
                "1",
            )
        touched = {path for path, *_ in rows[1:]}
        assert all(row["confirmed"] == "0" for path, row in after.items() if path not in touched)
        if onto is not None:
            kept = {p: r["cluster"] for p, r in before.items() if p not in touched}
            assert {path: after[path]["cluster"] for path in kept} == kept
    # What was confirmed is still so in the next run, which needs no corrections any more.
    cluster(embeddings=table, threshold=THRESHOLD, onto=tmp_path / "outFalse", out=tmp_path / "third")
    assert grouped(tmp_path / "third") == grouped(tmp_path / "outFalse")


def test_newer_corrections_move_what_was_confirmed(first: Path, table: Path, tmp_path: Path) -> None:
    path = next(iter(grouped(first)))
    for number, name in ((80, "Bob"), (81, "Eve")):
        corrections = listed(tmp_path / "c.csv", ("path", "cluster", "name"), (path, number, name))
        cluster(embeddings=table, threshold=THRESHOLD, onto=first, corrections=corrections, out=first)
        assert grouped(first)[path] | {"distance_to_centre": "", "quality": ""} == {
            "path": path, "cluster": str(number), "distance_to_centre": "", "name": name, "confirmed": "1",
            "quality": "",
        }  # fmt: skip


def test_pairs_are_kept(first: Path, table: Path, tmp_path: Path) -> None:
    before = grouped(first)
    zero = [path for path, row in before.items() if row["cluster"] == "0"]
    one = next(path for path, row in before.items() if row["cluster"] == "1")
    must = listed(tmp_path / "must.csv", (zero[0], one))
    cannot = listed(tmp_path / "cannot.csv", ("path_a", "path_b"), (zero[0], zero[1]))
    cluster(embeddings=table, threshold=THRESHOLD, must_link=must, cannot_link=cannot, out=tmp_path / "out")
    after = {path: row["cluster"] for path, row in grouped(tmp_path / "out").items()}
    assert after[zero[0]] == after[one] != after[zero[1]]
    listed(cannot, ("path_a", "path_b"), (one, zero[0]))
    with pytest.raises(
        DataError, match=r"are two people by .*cannot\.csv line 2, and one by .*must\.csv line 1"
    ):
        cluster(
            embeddings=table, threshold=THRESHOLD, must_link=must, cannot_link=cannot, out=tmp_path / "two"
        )


def test_photographs_that_are_gone_are_named(
    first: Path, faces_table: EmbeddingTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = grouped(first)
    gone = list(before)[:2]
    left = [i for i, path in enumerate(faces_table.paths.tolist()) if path not in gone]
    rest = some(faces_table, left, tmp_path / "rest.npz")
    cannot = listed(tmp_path / "cannot.csv", (gone[0], list(before)[5]))
    corrections = listed(tmp_path / "c.csv", ("path", "cluster", "name"), (gone[1], 500, "Zoe"))
    options: dict[str, Any] = {"cannot_link": cannot, "corrections": corrections, "onto": first}
    found = cluster(embeddings=rest, threshold=THRESHOLD, out=tmp_path / "out", **options)
    assert (
        f"2 images of the lists not there and of no effect: {gone[0]}, {gone[1]}" in capsys.readouterr().out
    )
    assert found.groups.gone == tuple(gone)
    assert (
        max(found.groups.number) < 500
        or min(n for n in found.groups.number if n not in found.groups.old) > 500
    )
    assert "Zoe" not in found.groups.name
    foreign = EmbeddingTable(
        faces_table.embeddings, faces_table.identities, np.char.add("x", faces_table.paths)
    )
    file = foreign.save(tmp_path / "foreign.npz")
    with pytest.raises(
        DataError, match=r"none of the 91 images of .*clusters\.csv is there \(first .*; name the"
    ):
        cluster(embeddings=file, threshold=THRESHOLD, onto=first, out=tmp_path / "none")


def test_groups_by_name_alone_have_the_numbers_of_their_names() -> None:
    members = [
        Member("a", -1, "Anna", True, 2),
        Member("b", 9, "Bob", True, 3),
        Member("c", -1, "Eve", True, 4),
    ]
    found = numbered_members(members, {4: "Anna", 5: ""}, 6)
    assert [m.number for m in found] == [4, 9, 10]


def test_methods_that_cannot_keep_groups_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"onto=, .* need method='agglomerative', not dbscan"):
        cluster(embeddings="x.npz", threshold=0.5, method="dbscan", onto=tmp_path, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read"):
        cluster(embeddings="x.npz", threshold=0.5, corrections=tmp_path / "nowhere.csv", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_text_come_back(untrained: Path, faces: Path, tmp_path: Path) -> None:
    """A file name of bytes that are no UTF-8 is written with escapes, and found again by them."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, path in enumerate(sorted(p for p in faces.rglob("*") if p.is_file())[:6]):
        shutil.copy(path, photos / f"{i}.png")
    odd = photos / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        (photos / "0.png").rename(odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    options: dict[str, Any] = {"threshold": 0.99, "workers": 0, "device": "cpu", "sheets": 0}
    cluster(str(photos), weights=untrained, out=tmp_path / "out", **options)
    (name,) = [path for path in grouped(tmp_path / "out") if path.startswith("caf")]
    corrections = listed(tmp_path / "c.csv", ("path", "cluster", "name"), (name, 30, "Zoë"))
    found = cluster(str(photos), weights=untrained, corrections=corrections, out=tmp_path / "new", **options)
    assert found.groups.gone == ()
    assert grouped(tmp_path / "new")[name]["name"] == "Zoë"
