"""The heap keeps what training frees."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from facemetric.training.heap import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(16):  # aligned blocks settle after some turns
    torch.ones(16 << 20)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heap it sets")
def test_a_freed_block_is_used_again_without_new_pages() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 64 < faults["given back"]
