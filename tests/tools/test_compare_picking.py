"""What picking in less precision changes: the emulation, its figures, and batches out of tables."""

from __future__ import annotations

import sys
from pathlib import Path

import compare_picking
import numpy as np
import pytest
import torch
import triton_interpreter
from compare_picking import Emulated, change_of_all, change_of_picks, changes, drawn, picks, rounded

from facemetric.evaluation.table import EmbeddingTable
from facemetric.mining import MINERS


def batch(rows: int = 96, images: int = 4) -> compare_picking.Batch:
    return drawn("people", rows, images, 12, torch.Generator().manual_seed(0))


def test_rounding_by_hand() -> None:
    bit = 2.0**-10
    given = torch.tensor([1 + 0.4 * bit, 1 + 0.6 * bit, -1 - 0.6 * bit, 1 + 1.5 * bit])
    assert rounded(given, "tf32").tolist() == [1, 1 + bit, -1 - bit, 1 + 2 * bit]
    assert rounded(given, "tf32-cut").tolist() == [1, 1, -1, 1 + bit]
    assert rounded(given, "bfloat16").tolist() == [1, 1, -1, 1]
    assert rounded(given, "float32").equal(given)


@pytest.mark.parametrize("miner", ["hard", "semihard"])
def test_in_float32_the_emulation_picks_as_the_miner_does(miner: str) -> None:
    assert torch.equal(Emulated(batch(), "float32").triplets(miner), picks(miner, batch(), "float32"))


def test_batch_all_is_paid_as_the_miner_pays_it() -> None:
    rows, labels = batch()
    at = Emulated((rows, labels), "float32")
    active_BKB = at.dist_BB[:, None] < (at.d_ap_BK + compare_picking.MARGIN)[:, :, None]
    loss, grad = compare_picking.paid_by_count((rows, labels), at.p_BK, active_BKB.sum(2), active_BKB.sum(1))
    wide = rows.double().requires_grad_()
    found = MINERS["all"](wide, labels, margin=compare_picking.MARGIN)
    found.loss.backward()
    assert loss == pytest.approx(float(found.loss.detach()), rel=1e-9)
    assert wide.grad is not None
    torch.testing.assert_close(grad, wide.grad)
    change = change_of_all((rows, labels), "bfloat16")
    flipped = (
        Emulated((rows, labels), "bfloat16").dist_BB[:, None] < (at.d_ap_BK + 0.2)[:, :, None]
    ) != active_BKB
    assert change.other == pytest.approx(int(flipped.sum()) / int(active_BKB.sum()))
    assert 0 < change.wrong < change.other


def test_a_wrong_pick_is_counted_and_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pick of 96 falls on the farthest negative, by hard's rule, and one of semihard's on the nearest."""
    for miner, place in (("hard", -5), ("semihard", 0)):
        known_T3 = picks(miner, batch(), "float32")
        found_T3 = known_T3.clone()
        row = int((known_T3[:, 0] == 7).nonzero()[0])
        dist_B = Emulated(batch(), "float32").dist_BB[7]
        found_T3[row, 2] = dist_B.argsort()[place]
        gap = float(dist_B[found_T3[row, 2]] - dist_B[known_T3[row, 2]])
        monkeypatch.setattr(compare_picking, "picks", lambda *_, found=found_T3: found)
        change = change_of_picks(miner, batch(), known_T3, "tf32")
        monkeypatch.undo()
        assert change.other == pytest.approx(1 / len(known_T3))
        assert change.wrong == change.other
        assert change.moved == pytest.approx(abs(gap), rel=1e-5)
        assert (gap > 0) == (miner == "hard") == (change.loss < 0)
        assert 1e-6 < change.turn < 0.1


def test_where_the_kernels_serve_they_pick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; the draws of two precisions begin with the same random numbers."""
    pytest.importorskip("triton", reason="Triton is not installed")
    emulated = changes("semihard", [batch(48)], ["bfloat16"])["bfloat16"]
    triton_interpreter.serve(monkeypatch)
    monkeypatch.delattr(compare_picking, "Emulated")
    found = changes("semihard", [batch(48)], ["bfloat16"])["bfloat16"]
    assert found.other == emulated.other > 0
    assert found.turn == pytest.approx(emulated.turn, rel=1e-4)
    drawn_by = changes("distance-weighted", [batch(48)], ["bfloat16"])["bfloat16"]
    assert drawn_by.other < 0.3
    assert drawn_by.wrong == 0


def test_the_command_takes_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, labels = (each.numpy() for each in batch(80, 5))
    table = EmbeddingTable(rows, labels.astype(str), np.arange(80).astype(str))
    table.save(tmp_path / "a.npz")
    words = ["--rows", "random", "--tables", f"own={tmp_path / 'a.npz'},{tmp_path / 'a.npz'}"]
    words += ["--sizes", "64", "--images", "4", "--batches", "2", "--dim", "8"]
    monkeypatch.setattr(sys, "argv", ["compare_picking.py", *words])
    compare_picking.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    assert len(lines) == 2 * 4 * 2  # rows, miners, precisions
    assert {line.split("|")[1].strip() for line in lines} == {"random", "own"}
    monkeypatch.setattr(sys, "argv", ["compare_picking.py", *words, "--images", "8"])
    with pytest.raises(SystemExit, match=r"^0 of 32 identities have 8 images, a batch of 64 needs 8"):
        compare_picking.main()
    monkeypatch.setattr(sys, "argv", ["compare_picking.py", *words, "--images", "6"])
    with pytest.raises(SystemExit, match="2"):
        compare_picking.main()
    assert "a batch of 64 is not a multiple of 6 images an identity" in capsys.readouterr().err
