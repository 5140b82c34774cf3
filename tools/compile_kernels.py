"""What Triton's compiler says of the fused mining kernels for a GPU that need not be there.

    python tools/compile_kernels.py --capability 80 90

Registers a thread, bytes of registers that did not fit (spills), shared memory of a block, and the largest block of
shared memory that GPUs of the kind allow: 64 KiB (7.5), 163 KiB (8.0), 99 KiB (8.6, 8.9), 227 KiB (9.0).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile

os.environ.pop("TRITON_INTERPRET", None)

from facemetric.mining.kernels import gpu


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of local memory, by cuobjdump of Triton; -1 where it is not there."""
    import triton

    tool = os.path.join(os.path.dirname(triton.__file__), "backends/nvidia/bin/cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            found = subprocess.run(
                [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return -1, -1
    registers = re.search(r"REG:(\d+)", found.stdout)
    local = re.search(r"LOCAL:(\d+)", found.stdout)
    stack = re.search(r"STACK:(\d+)", found.stdout)
    spilled = int(local.group(1)) + int(stack.group(1)) if local and stack else -1
    return int(registers.group(1)) if registers else -1, spilled


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90])
    options = parser.parse_args()
    print("| sm | kernel | registers | stack and local bytes | shared bytes |\n|---|---|---|---|---|")
    for capability in options.capability:
        for name, made in gpu.compiled_for(capability).items():
            registers, spilled = usage(made.asm["cubin"])
            print(f"| {capability} | {name} | {registers} | {spilled} | {made.metadata.shared} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
