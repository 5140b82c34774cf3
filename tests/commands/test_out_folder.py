"""A folder of results is written again by the very same command alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from facemetric import cluster, evaluate, export
from facemetric.cli import main
from facemetric.commands.out_folder import COMMANDS, claim_out, file_hashes, results_come
from facemetric.config import CalibrateConfig, ClusterConfig, EvalConfig
from facemetric.errors import ConfigError

FAST: dict[str, Any] = {"workers": 0, "device": "cpu"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_same_again_or_another_out(kind: type, tmp_path: Path) -> None:
    weights, other = SimpleNamespace(fingerprint="1" * 64), SimpleNamespace(fingerprint="2" * 64)
    config = kind(weights="a", out=tmp_path / "out")
    claim_out(config, weights=weights)
    claim_out(replace(config, weights="mistyped"), weights=other)  # no results so far
    claim_out(config, weights=weights)
    results_come(config)
    claim_out(config, weights=weights)
    found = contents(config.out)
    with pytest.raises(
        ConfigError, match=r"holds another .* \(weights a -> b\); name another --out, or remove it$"
    ):
        claim_out(replace(config, weights="b"), weights=weights)
    with pytest.raises(
        ConfigError, match=r"\(sha256 of the weights 111111111111 -> 222222222222\); name another"
    ):
        claim_out(config, weights=other)
    for another in COMMANDS.keys() - {kind}:
        with pytest.raises(ConfigError, match=f"holds the results of {COMMANDS[kind]}; name another"):
            claim_out(another(weights="a", out=config.out), weights=weights)
    assert contents(config.out) == found
    shutil.rmtree(config.out)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_text("a program's")
    claim_out(replace(config, out=tmp_path / "out"))
    (tmp_path / "out" / "made_by.json").unlink()
    (tmp_path / "out" / "embeddings.npz").write_text("the user's")
    with pytest.raises(ConfigError, match=r"holds other files \(embeddings\.npz, \.\.\.\); name another"):
        claim_out(config, weights=weights)
    assert sorted(contents(config.out).values()) == [b"a program's", b"the user's"]


def test_a_list_that_changed_is_another_and_a_far_is_added(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("Ada")
    config = CalibrateConfig(identities=names, far=(1e-2,), out=tmp_path / "out")
    claim_out(config)
    results_come(config)
    claim_out(replace(config, far=(1e-3,), workers=7))
    names.write_text("Bea")
    with pytest.raises(ConfigError, match=r"\(sha256 of --identities [0-9a-f]{12} -> [0-9a-f]{12}\)"):
        claim_out(config)


def test_a_path_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "faces", "others"):
        Path(name).mkdir()
    config = EvalConfig(weights="weights", data=("faces", "a=faces"), out=tmp_path / "out")
    claim_out(config)
    results_come(config)
    claim_out(replace(config, weights=str(tmp_path / "weights"), data=("faces/", "a=faces")))
    with pytest.raises(ConfigError, match=r"\(data \S+/faces a=faces -> \S+/others a=faces\)"):
        claim_out(replace(config, data=("others", "a=faces")))


def test_the_folder_that_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = ClusterConfig(threshold=0.5, out=Path("."))
    claim_out(config)
    results_come(config)
    with pytest.raises(ConfigError, match=r"holds another cluster \(threshold 0\.5 -> 0\.6\)"):
        claim_out(replace(config, threshold=0.6))


def test_images_and_weights_are_not_read_for_their_hash(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("faces.tar", "model.onnx", "faces.npz", "pairs.csv")}
    for file in files.values():
        file.write_text("x")
    images, weights, table, _ = map(str, files.values())
    config = EvalConfig(
        weights=weights,
        data=(images,),
        gallery=(images,),
        cohort=(table,),
        compare=(weights, table),
        pairs=files["pairs.csv"],
    )
    assert list(file_hashes(config)) == ["--pairs", f"--compare {table}", "--cohort"]


def test_what_a_start_without_results_left_is_removed(tmp_path: Path) -> None:
    config = EvalConfig(embeddings=tmp_path / "out" / "embeddings_gallery.npz", out=tmp_path / "out")
    claim_out(config)
    for name in ("embeddings.npz", "embeddings_gallery.npz", "gallery_bad_images.csv", "missing_images.txt"):
        (config.out / name).write_text("old")
    claim_out(config)
    left = {path.name for path in config.out.iterdir()}
    assert left == {"made_by.json", "embeddings_gallery.npz"}  # the second is asked for
    for text in ("{", "[]", '{"command": "eval"}'):
        (config.out / "made_by.json").write_text(text)
        with pytest.raises(ConfigError, match=r"made_by\.json is damaged; name another --out, or remove it"):
            claim_out(config)


def test_another_models_evaluation_is_kept(
    untrained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(untrained, other)
    evaluate(untrained, data=faces, out=out, **FAST)
    found = contents(out)
    with pytest.raises(
        ConfigError, match=r"holds another eval \(weights .*weights -> .*other\); name another out="
    ):
        evaluate(other, data=faces, out=out, **FAST)
    assert contents(out) == found
    again = evaluate(untrained, data=faces, out=out, **FAST)
    assert again.report == out / "report.html"
    words = ["eval", "--weights", str(other), "--data", str(faces), "--out", str(out)]
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "name another --out, or remove it" in capsys.readouterr().err


def test_an_exported_file_is_kept(untrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(untrained, out=tmp_path / "out", side=32)
    found = contents(tmp_path / "out")
    with pytest.raises(ConfigError, match=r"holds another export \(side 32 -> 40\)"):
        export(untrained, out=tmp_path / "out", side=40)
    assert contents(tmp_path / "out") == found


def test_a_clustering_goes_on_where_it_is(untrained: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, Any] = {"weights": untrained, "sheets": 0, "page": False, "out": out} | FAST
    cluster(str(faces), threshold=0.99, **options)
    with pytest.raises(ConfigError, match=r"holds another cluster \(threshold 0\.99 -> 0\.9\)"):
        cluster(str(faces), threshold=0.9, **options)
    for onto in (out, out / "clusters.csv"):
        cluster(str(faces), threshold=0.9, onto=onto, **options)
