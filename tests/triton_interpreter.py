"""The fused kernels on a CPU, by Triton's interpreter, rounding as a GPU does.

The interpreter (3.8) cuts a float32 to a bfloat16 where a GPU rounds it, and multiplies the bit patterns of two
bfloat16 as if they were whole numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from facemetric.mining.kernels import choice, gpu

SMALL = {"BLOCK": 16, "COLUMNS": 16, "CHUNK": 16, "WIDTH": 16, "num_warps": 1}


def serve(patch: pytest.MonkeyPatch) -> None:
    """While the patch holds, the kernels mine what is on the CPU, in blocks that leave a rest of small batches."""
    sizes = {kernel: {name: SMALL[name] for name in given} for kernel, given in gpu.SIZES.items()}
    patch.setattr(gpu, "SIZES", sizes)
    patch.setattr(choice, "is_gpu", lambda device: True)
    patch.setattr(choice, "why_not_fused", lambda device, dtype: None if dtype == torch.float32 else "half")
    _bfloat16_as_on_a_gpu(patch)


def _bfloat16_as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounding(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        bits = torch.from_numpy(np.ascontiguousarray(data)).bfloat16().view(torch.int16)
        return bits.numpy().view(np.uint16)

    def widening(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        if a.dtype.scalar == tl.bfloat16:
            a, b = (builder.cast_impl(each, tl.float32) for each in (a, b))
        return dot(builder, a, b, *others)

    patch.setattr(interpreter, "_convert_float", rounding)
    patch.setattr(interpreter.InterpreterBuilder, "create_dot", widening)
