import importlib.util
import zipfile

import numpy as np
import pytest

from facemetric.data.pair_images import resolve
from facemetric.data.pair_list import Pairs
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable, unit_rows

needs_pyarrow = pytest.mark.skipif(
    importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed"
)


def table(n=5, d=3):
    names = np.array([f"Zoë {i % 2}" for i in range(n)])
    paths = np.array([f"{name}/image {i}.jpg" for i, name in enumerate(names)])
    emb = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    return EmbeddingTable(emb, names, paths, {"file": np.array(["", "jpg"])[np.arange(n) % 2]})


@pytest.mark.parametrize("ending", [".npz", pytest.param(".parquet", marks=needs_pyarrow)])
def test_round_trip_leaves_nothing_else(tmp_path, ending):
    file = table().save(tmp_path / "deep" / f"e{ending}")
    back = EmbeddingTable.load(file)
    np.testing.assert_array_equal(back.embeddings, table().embeddings)
    np.testing.assert_array_equal(back.identities, table().identities)
    np.testing.assert_array_equal(back.paths, table().paths)
    assert back.groups["file"].tolist() == ["", "jpg", "", "jpg", ""]
    assert list(back.groups) == ["file"]
    assert back.embeddings.dtype == np.float32
    assert [p.name for p in file.parent.iterdir()] == [file.name]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = table().save(tmp_path / "e.npz")
    before = file.read_bytes()

    def full_disk(out, **arrays):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        table(9).save(file)
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["e.npz"]


def test_other_numbers_become_float32_and_rows_are_found_but_not_of_a_path_that_stands_twice():
    t = EmbeddingTable(np.eye(3), np.array([7, 7, 8]), np.array(["a", "b", "a"], dtype=object))
    assert t.embeddings.dtype == np.float32
    assert t.identities.tolist() == ["7", "7", "8"]
    assert (t.find("a"), t.find("b"), t.find("c"), t.name(1), len(t)) == (None, 1, None, "b", 3)
    assert (t.standing_twice(), t.rows(np.array([2, 1])).standing_twice()) == (["a"], [])
    pairs = Pairs.of(("b", "b"), ("a", "b"), np.ones(2, bool), source="p.csv")
    with pytest.raises(DataError, match=r"p.csv: 0 missing and 1 ambiguous of the 2 .*: a \(fits 2 images\)"):
        resolve(pairs, t)


@needs_pyarrow
def test_anybodys_parquet(tmp_path):
    import pandas as pd

    frame = pd.DataFrame(
        {"embeddings": [[1.0, 2.0], [3.0, 4.0]], "identities": ["a", "b"], "paths": ["x", "y"]}
    )
    frame["group_age"] = ["old", ""]
    frame["other"] = [1, 2]
    frame.to_parquet(tmp_path / "e.parquet")
    found = EmbeddingTable.load(tmp_path / "e.parquet")
    np.testing.assert_array_equal(found.embeddings, [[1, 2], [3, 4]])
    assert (found.paths.tolist(), list(found.groups)) == (["x", "y"], ["age"])
    # As many numbers as two rows of two would hold are no table either, nor is a row that is not there.
    for rows in ([[1.0], [3.0, 4.0]], [[1.0], [2.0, 3.0, 4.0]], [[1.0, 2.0], None]):
        frame["embeddings"] = rows
        frame.to_parquet(tmp_path / "e.parquet")
        with pytest.raises(DataError, match=r"embeddings of differing length, or none; needed the same"):
            EmbeddingTable.load(tmp_path / "e.parquet")
    frame.drop(columns="paths").to_parquet(tmp_path / "e.parquet")
    with pytest.raises(DataError, match="no paths among"):
        EmbeddingTable.load(tmp_path / "e.parquet")
    (tmp_path / "e.parquet").write_bytes((tmp_path / "e.parquet").read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable parquet file"):
        EmbeddingTable.load(tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("embeddings", "identities", "paths", "message"),
    [
        (np.ones(3), list("abc"), list("abc"), r"embeddings of shape \(3,\)"),
        (np.ones((0, 3)), [], [], r"embeddings of shape \(0, 3\)"),
        (np.array([["x"]]), ["a"], ["a"], "needed numbers"),
        (np.ones((3, 2)), list("ab"), list("abc"), r"identities of shape \(2,\); 3 embeddings"),
        (np.ones((3, 2)), list("abc"), [list("abc")], r"paths of shape \(1, 3\)"),
        (
            np.array([[1, 2], [np.nan, 0], [np.inf, 1]]),
            list("abc"),
            list("abc"),
            "NaN or infinity in 2 of 3.*'b'",
        ),
        (np.array([[1, 2], [0, 0]]), list("ab"), list("ab"), "only zeros in 1 of 2.*'b'"),
        (np.ones((1, 2)), [1.5], ["a"], "identities of type float64"),
        (np.ones((1, 2)), np.array([None]), ["a"], "no text"),
    ],
)
def test_bad_tables(embeddings, identities, paths, message):
    with pytest.raises(DataError, match=message):
        EmbeddingTable(embeddings, np.asarray(identities), np.asarray(paths))


def test_columns_that_are_not_groups_are_passed_over_and_groups_must_fit(tmp_path):
    np.savez(
        tmp_path / "e.npz", **{"embeddings": np.eye(2), "identities": ["a", "b"], "paths": ["a", "b"]}, x=1
    )
    assert EmbeddingTable.load(tmp_path / "e.npz").groups == {}
    with pytest.raises(DataError, match=r"group_age of shape \(3,\); 2 embeddings"):
        EmbeddingTable(np.eye(2), np.array(["a", "b"]), np.array(["a", "b"]), {"age": np.array(list("abc"))})
    some = table().rows(np.array([3, 1]))
    assert some.paths.tolist() == table().paths[[3, 1]].tolist()
    assert some.groups["file"].tolist() == ["jpg", "jpg"]
    np.testing.assert_array_equal(some.embeddings, table().embeddings[[3, 1]])


def test_bad_files(tmp_path):
    good = table().save(tmp_path / "good.npz")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:-40])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not a zip")
    np.savez(tmp_path / "keys.npz", embeddings=np.eye(2), names=["a", "b"])
    np.savez(tmp_path / "objects.npz", embeddings=np.eye(1), identities=np.array([{}]), paths=["a"])
    np.savez(tmp_path / "nan.npz", embeddings=np.full((1, 2), np.nan), identities=["a"], paths=["a"])
    (tmp_path / "e.npy").write_bytes(b"")
    for name, message in {
        "cut": "cut.npz: not a readable",
        "empty": "empty.npz: not a readable",
        "text": "text.npz: not a readable|pickled",
        "keys": "no identities, paths among 'embeddings, names'",
        "objects": "holds pickled objects",
        "nan": r"nan.npz: NaN or infinity in 1 of 1",
        "absent": "no such file",
    }.items():
        with pytest.raises(DataError, match=message):
            EmbeddingTable.load(tmp_path / f"{name}.npz")
    with pytest.raises(DataError, match=r"\.npz or \.parquet"):
        EmbeddingTable.load(tmp_path / "e.npy")


def test_parquet_without_pyarrow_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"needs pyarrow, which is not installed; `pip install .*parquet"):
        table().save(tmp_path / "e.parquet")


def test_files_that_hold_something_else(tmp_path):
    with open(tmp_path / "bare.npz", "wb") as file:
        np.save(file, np.eye(2))
    with pytest.raises(
        DataError, match=r"bare.npz: a bare array; needed an .npz with embeddings, identities"
    ):
        EmbeddingTable.load(tmp_path / "bare.npz")
    good = table().save(tmp_path / "good.npz")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "odd.npz", "w") as odd:
        for name in old.namelist():
            # a header of numpy without its key
            odd.writestr(name, old.read(name).replace(b"'descr'", b"'dexxr'"))
    with pytest.raises(DataError, match=r"odd.npz: not a readable .npz \(.*keys") as caught:
        EmbeddingTable.load(tmp_path / "odd.npz")
    assert "pickled" not in str(caught.value)


@needs_pyarrow
@pytest.mark.parametrize("kind", ["list_", "large_list", "fixed"])
def test_parquet_rows_of_any_list_and_one_that_is_missing(tmp_path, kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    form = pa.list_(pa.float32(), 2) if kind == "fixed" else getattr(pa, kind)(pa.float32())
    texts = {name: pa.chunked_array([["a"], ["b", "c"]]) for name in ("identities", "paths")}
    # Two chunks of which one is part of a longer column.
    whole = pa.array([[9, 9], [1, 2], [3, 4]], form).slice(1)
    for rows, file in (([[5, 6]], "good"), ([None], "short")):
        column = pa.chunked_array([pa.array(rows, form), whole])
        pq.write_table(pa.table({"embeddings": column, **texts}), tmp_path / f"{file}.parquet")
    np.testing.assert_array_equal(
        EmbeddingTable.load(tmp_path / "good.parquet").embeddings, [[5, 6], [1, 2], [3, 4]]
    )
    with pytest.raises(DataError, match=r"short.parquet: (embeddings of differing length|not a readable)"):
        EmbeddingTable.load(tmp_path / "short.parquet")


@needs_pyarrow
def test_a_parquet_of_single_numbers(tmp_path):
    import pandas as pd

    frame = pd.DataFrame({"embeddings": [0.1, 0.2], "identities": ["a", "b"], "paths": ["a", "b"]})
    frame.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(DataError, match="column embeddings is double; needed a list of numbers in each row"):
        EmbeddingTable.load(tmp_path / "e.parquet")
    frame["embeddings"] = [{"x": 1.0, "y": 2.0}] * 2
    frame.to_parquet(tmp_path / "e.parquet")
    with pytest.raises(DataError, match=r"column embeddings is struct.*; needed a list of numbers"):
        EmbeddingTable.load(tmp_path / "e.parquet")


def test_the_weights_that_made_it_stay_with_a_table(tmp_path):
    table = EmbeddingTable(np.eye(3), np.array(list("aab")), np.array(list("xyz")), weights="12ab")
    for ending in ("npz", "parquet"):
        assert EmbeddingTable.load(table.save(tmp_path / f"t.{ending}")).weights == "12ab"
    assert table.rows(np.array([2])).weights == "12ab"
    bare = EmbeddingTable(np.eye(3), np.array(list("aab")), np.array(list("xyz")))
    assert EmbeddingTable.load(bare.save(tmp_path / "t.npz")).weights == ""
    columns = {"embeddings": np.eye(2), "identities": ["a", "b"], "paths": ["x", "y"]}
    np.savez(tmp_path / "two.npz", **columns, weights_sha256=["1", "2"])
    with pytest.raises(DataError, match=r"two.npz: embeddings of 2 different weights"):
        EmbeddingTable.load(tmp_path / "two.npz")


def test_a_table_shows_in_a_line_and_as_a_frame():
    table = EmbeddingTable(
        np.eye(3), np.array(list("aab")), np.array(list("xyz")), {"age": np.array(["1", "", "2"])}
    )
    assert repr(table) == "EmbeddingTable(3 x 3, 2 identities)"
    frame = table.to_frame()
    assert list(frame.columns) == ["path", "identity", "age", "e0", "e1", "e2"]
    assert frame.loc[1, "e1"] == 1
    assert frame["identity"].tolist() == ["a", "a", "b"]


@pytest.mark.filterwarnings("error")
def test_numbers_that_float32_cannot_hold_are_refused_in_one_line():
    emb = np.array([[1.0, 0], [1e39, 1]])
    with pytest.raises(DataError, match=r"NaN or infinity in 1 of 2 embeddings, first 'y'$"):
        EmbeddingTable(emb, np.array(["a", "b"]), np.array(["x", "y"]))
    with pytest.raises(DataError, match="1 of 2 embeddings are zero or not finite, first row 1"):
        unit_rows(emb)
