"""The speed table: every way is measured, the same model has the same accuracy, and what is missing is said."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from bench_export import WAYS, Speed, bench, lfw_in, parse, table
from untrained_weights import untrained

from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs

__all__ = ["untrained"]


def test_the_ways_take_turns_and_agree(
    untrained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(untrained), "--data", str(faces), "--side", "32", "--out", str(tmp_path), "--rounds", "1"]
    words += [
        "--seconds",
        "0.01",
        "--batches",
        "1",
        "3",
        "--cores",
        "1",
        "--ways",
        "torch",
        "onnx",
        "onnx int8",
    ]
    speeds, accuracy = bench(parse(words))
    assert [(one.way, one.batch, one.cores) for one in speeds] == [
        ("torch", 1, 1),
        ("torch", 3, 1),
        ("onnx", 1, 1),
        ("onnx", 3, 1),
    ]
    assert all(one.per_second > 0 and one.per_cpu_second > 0 for one in speeds)
    assert accuracy == {}
    assert (
        "onnx int8 is left out: give --calibration, crops that are no test images" in capsys.readouterr().out
    )


def test_the_accuracy_on_lfw_of_every_way(untrained: Path, faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    drawn = make_pairs(index.identity, count=40, folds=2, seed=0)
    people = {name: i for i, name in enumerate(index.identities)}
    lines, tar_file = ["2\t10"], tmp_path / "lfw112.tar"
    with tarfile.open(tar_file, "w") as tar:
        for row in range(len(index)):
            who = index.identities[index.identity[row]]
            member = tarfile.TarInfo(f"Person{people[who]}/Person{people[who]}_{row + 1:04d}.png")
            member.size = index.size(row)
            tar.addfile(member, io.BytesIO(index.read(row)))
    for a, b, same in sorted(zip(drawn.a, drawn.b, drawn.same, strict=True), key=lambda pair: not pair[2]):
        names = [f"Person{people[index.identities[index.identity[row]]]}" for row in (a, b)]
        cells = [names[0], a + 1, b + 1] if same else [names[0], a + 1, names[1], b + 1]
        lines.append("\t".join(map(str, cells)))
    (tmp_path / "lfw").mkdir()
    # View 2 has blocks of both kinds: ten of one person, ten of two people, and again.
    genuine, impostor = lines[1:21], lines[21:]
    blocks = [*genuine[:10], *impostor[:10], *genuine[10:], *impostor[10:]]
    (tmp_path / "lfw" / "pairs.txt").write_text("\n".join([lines[0], *blocks]) + "\n")
    words = [
        str(untrained),
        "--lfw",
        str(tmp_path),
        "--side",
        "32",
        "--out",
        str(tmp_path / "out"),
        "--rounds",
        "1",
    ]
    words += ["--seconds", "0.01", "--batches", "1", "--cores", "1", "--ways", "torch", "onnx"]
    _, accuracy = bench(parse(words))
    assert set(accuracy) == {"torch", "onnx"}
    assert accuracy["torch"] == pytest.approx(accuracy["onnx"], abs=0.026)  # a pair of forty at the most
    assert 0.3 <= accuracy["torch"] <= 1


def test_without_lfw_the_reason_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lfw112.tar").touch()
    assert lfw_in(tmp_path) is None
    assert capsys.readouterr().out == f"no accuracy on LFW: {tmp_path / 'lfw' / 'pairs.txt'} not there\n"


def test_the_table_has_what_was_measured_alone() -> None:
    text = table([Speed("onnx", 8, 2, 123.4, 61.7), Speed("browser", 8, 1, 20.0, 10.0)], {"onnx": 0.95851})
    assert "| onnx | 2 | 8 | 123 | 62 | 0.9585 |" in text
    assert "| browser | 1 | 8 | 20 | 10 | not measured |" in text
    assert set(WAYS) >= {"torch", "torch.compile", "onnx", "onnx int8", "openvino", "browser"}
