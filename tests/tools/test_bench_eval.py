"""The benchmark of the evaluation finds the parts of `eval` that it times."""

from __future__ import annotations

import time
from pathlib import Path

import bench_eval
import pytest

from facemetric.commands import embedding
from facemetric.commands.evaluating import eval as command
from facemetric.commands.evaluating import scores
from facemetric.model.embedder import Embedder


def test_share_times_every_part(
    untrained: Path,
    pairs: Path,
    faces: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ((Embedder, "forward"), (embedding, "embed_index"), (scores, "score_neighbours"))
    for holder, name in (*places, (command, "write_report")):
        monkeypatch.setattr(
            holder, name, getattr(holder, name)
        )  # so that what is timed is as before at the end
    bench_eval.bench_share(str(untrained), str(pairs), [str(faces)], time.perf_counter)
    line = capsys.readouterr().out.splitlines()[-1]
    for what in ("network", "network, reading and decoding", "neighbours", "report.html"):
        assert f" {what} " in line
