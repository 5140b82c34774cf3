"""The speed table: every way is measured, the same model has the same accuracy, and what is missing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_export import WAYS, Speed, bench, parse, table
from untrained_weights import untrained

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


def test_the_table_has_what_was_measured_alone() -> None:
    text = table([Speed("onnx", 8, 2, 123.4, 61.7), Speed("browser", 8, 1, 20.0, 10.0)], {"onnx": 0.95851})
    assert "| onnx | 2 | 8 | 123 | 62 | 0.9585 |" in text
    assert "| browser | 1 | 8 | 20 | 10 | not measured |" in text
    assert set(WAYS) >= {"torch", "torch.compile", "onnx", "onnx int8", "openvino", "browser"}
