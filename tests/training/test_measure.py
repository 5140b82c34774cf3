"""Peaks are those of the body alone, also where the process keeps what it frees."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, torch
from facemetric.training.heap import keep_freed_memory
from facemetric.training.measure import Measured, measuring

def take(pieces):  # of 16 MiB
    found = Measured()
    with measuring(found):
        held = [torch.ones(2**22) for _ in range(pieces)]
        del held
    return found.peak_mib

keep_freed_memory()
take(1)
print(json.dumps([take(1), take(20), take(5), take(1)]))
"""


def test_each_peak_is_its_own() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    small, large, middle, again = json.loads(ran.stdout)
    assert 280 < large - small < 340
    assert 40 < middle - small < 100
    assert abs(again - small) < 20
