"""The campaigns of pairs files and of batches: they find nothing, and a fault that is planted they find."""

from __future__ import annotations

import random
from pathlib import Path

import fuzz_mining
import fuzz_pairs
import pytest

from facemetric.commands.evaluating.inputs import ListedPairs
from facemetric.data.pair_images import resolve


def faults_of_pairs(folder: Path, cases: range) -> list[str]:
    table = fuzz_pairs.table_of(0)
    found = []
    for case in cases:
        chance = random.Random(case)
        lines = fuzz_pairs.draw_lines(chance, table)
        found.append(fuzz_pairs.check(lines, fuzz_pairs.written(chance, lines), table, folder))
    return list(filter(None, found))


def test_pairs_files_are_read_as_the_twin_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not faults_of_pairs(tmp_path, range(60))
    monkeypatch.setattr(
        fuzz_pairs, "list_pairs", lambda pairs, table, out: ListedPairs(pairs, *resolve(pairs, table))
    )
    assert len(faults_of_pairs(tmp_path, range(60))) > 10  # every repeat is counted again


def test_batches_are_mined_as_the_twin_mines_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [fuzz_mining.draw_case(number) for number in range(120)]
    assert not [what for case in cases if (what := fuzz_mining.check(case)[0])]
    assert len({case.kind for case in cases}) == 10
    monkeypatch.setitem(fuzz_mining.MINERS, "semihard", fuzz_mining.MINERS["hard"])
    assert sum(bool(fuzz_mining.check(case)[0]) for case in cases if case.miner == "semihard") > 5
