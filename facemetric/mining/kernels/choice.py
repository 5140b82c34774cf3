"""Which kernels mine, in one place: by device, dtype and what is installed; and in which precision they pick.

| where | how |
|---|---|
| a CPU, up to 512 rows | `small_batch.py`: one matrix |
| a CPU | tiles |
| CUDA, float32, Triton, compute capability 8.0 or more | `gpu.py`: fused kernels |
| any other GPU, and float64 | `panels.py`: plain torch in few calls |
| mps, which has no float64 | the CPU |
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from facemetric.errors import ConfigError

# Below it a GPU has no asynchronous copies and Triton no backend.
OLDEST = (8, 0)
# Name -> how the operands of the product are rounded by which a miner picks.
PRECISIONS = {"float32": "ieee", "tf32": "tf32", "bfloat16": "bf16"}
_picking = ["float32"]


def is_gpu(device: torch.device) -> bool:
    """Whether calls cost more than arithmetic there."""
    return device.type not in ("cpu", "mps")


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def why_not_fused(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the fused kernels do not serve rows that are computed in this dtype; None where they do."""
    if device.type != "cuda":
        return f"they need CUDA, the rows are on {device.type}"
    if not has_triton():
        return "they need Triton, which is not installed: pip install triton"
    if torch.version.hip is None and (found := torch.cuda.get_device_capability(device)) < OLDEST:
        return f"they need compute capability 8.0, this GPU has {found[0]}.{found[1]}"
    return None if dtype == torch.float32 else f"they compute in float32, the rows are {dtype}"


def fused(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the fused kernels serve rows that are computed in this dtype."""
    return why_not_fused(device, dtype) is None


@contextmanager
def picking(precision: str) -> Iterator[None]:
    """Within it hard, semihard and distance-weighted pick by products of "float32" (as without it), "tf32" or
    "bfloat16"; what they pick is paid in float32. batch-all, which weighs every distance, stays in float32.

    It is for the whole process. Raises ConfigError for another name; a miner does where the fused kernels do not serve.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"picking precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}")
    before, _picking[0] = _picking[0], precision
    try:
        yield
    finally:
        _picking[0] = before


def picking_precision() -> str:
    """As the kernels call it."""
    return PRECISIONS[_picking[0]]


def check_picking(device: torch.device, dtype: torch.dtype) -> None:
    """Raises ConfigError where another precision than float32 is asked for, and cannot be had."""
    if _picking[0] != "float32" and not fused(device, dtype):
        reason = why_not_fused(device, dtype)
        raise ConfigError(
            f"picking in {_picking[0]} is for the fused kernels, and {reason}; leave `picking` out for float32"
        )


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """float32 products stay float32 on a GPU, where TF32 may be switched on for the network: a distance keeps seven
    digits instead of three."""
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    if matmul.fp32_precision != "tf32":
        yield
        return
    try:  # back by the word that switched it on: torch refuses to read either where they are at odds
        before, exact = torch.get_float32_matmul_precision(), "highest"
        switch: Callable[[str], None] = torch.set_float32_matmul_precision
    except RuntimeError:
        before, exact = matmul.fp32_precision, "ieee"
        switch = functools.partial(setattr, matmul, "fp32_precision")
    switch(exact)
    try:
        yield
    finally:
        switch(before)


@contextmanager
def memory_named(rows: int) -> Iterator[None]:
    """Raises ConfigError, which says what to change, where the device has no memory left for mining."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU has no memory left to mine a batch of {rows} images ({str(error).splitlines()[0]}): lower "
            "--batch-size; --microbatch lowers what the backbone holds meanwhile"
        ) from error
