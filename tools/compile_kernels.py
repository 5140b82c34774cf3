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
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

from facemetric.mining.kernels import gpu

# The types of the kernels' arguments; what is not named is *fp32. And the flags that each is compiled with.
INTEGERS = {
    "at": "*i32",
    "best": "*i32",
    "listed": "*i32",
    "n_listed": "*i32",
    "start": "*i64",
    "count": "*i64",
}
POINTERS = INTEGERS | {"at_p": "*i64", "loss": "*fp64", "row_sum": "*fp64", "drawn": "*fp64"}
NUMBERS = {"margin": "fp32", "power": "fp32", "other_power": "fp32", "quarter": "fp32", "first_row": "i32"}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "pick": [{"GAP": True, "LIST": True, "CAP": 8, "PRECISION": "ieee"}]
    + [
        {"GAP": gap, "LIST": False, "CAP": 8, "PRECISION": p}
        for gap in (0, 1)
        for p in ("ieee", "tf32", "bf16")
    ],
    "settle": [{"GAP": gap, "CAP": 8} for gap in (False, True)],
    "draw": [{"PRECISION": p} for p in ("ieee", "tf32", "bf16")],
    "weigh": [
        {"OWN": own, "DOWN": down, "ROOT": root, "SOFT": soft}
        for own, down in ((True, True), (True, False), (False, True))
        for root in (False, True)
        for soft in (False, True)
    ],
}


def compiled_for(capability: int, only: dict[str, list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """What Triton makes of each variant (`only` some) for a compute capability (80, 90), by name."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from facemetric.mining.kernels import gpu_kernels

    made = {}
    for name, variants in (only or VARIANTS).items():
        kernel = getattr(gpu_kernels, name)
        for flags in variants:
            options = dict(gpu.SIZES[name])
            warps = options.pop("num_warps")
            constants = flags | options
            signature = {argument: _kind(name, argument, constants) for argument in kernel.arg_names}
            source = ASTSource(kernel, signature, constants)
            target = GPUTarget("cuda", capability, 32)
            made[f"{name} {flags}"] = triton.compile(source, target=target, options={"num_warps": warps})
    return made


def _kind(kernel: str, argument: str, constants: dict[str, Any]) -> str:
    """The type of an argument, as Triton calls it."""
    if argument in constants:
        return "constexpr"
    if argument == "width" or (argument.startswith("n_") and argument != "n_listed"):
        return "i32"
    if kernel == "draw" and argument in ("low", "high"):
        return "fp32"
    return POINTERS.get(argument, NUMBERS.get(argument, "*fp32"))


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
        for name, made in compiled_for(capability).items():
            registers, spilled = usage(made.asm["cubin"])
            print(f"| {capability} | {name} | {registers} | {spilled} | {made.metadata.shared} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
