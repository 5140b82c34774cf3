"""The Triton kernels of `gpu.py`: what one program does. Imported where they run, as Triton compiles them there.

Products are in float32 throughout ("ieee"), so that the bounds on their rounding in `common.slack` hold.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

CHUNK = tl.constexpr(32)  # columns of the operands that are multiplied at once


def blocks(count: int, size: int) -> int:
    """How many blocks of a size cover a count."""
    return -(-count // size)


@triton.jit
def squared(left, right, rows, columns, row_ok, column_ok, width, BLOCK: tl.constexpr):
    """Squared distances (BLOCK, BLOCK) of rows and columns: a product of the operands, `width` numbers each."""
    found = tl.zeros([BLOCK, BLOCK], tl.float32)
    at = tl.arange(0, CHUNK)
    for first in range(0, width, CHUNK):
        inside = first + at < width
        a = tl.load(
            left + rows[:, None].to(tl.int64) * width + (first + at)[None, :],
            mask=row_ok[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            right + columns[:, None].to(tl.int64) * width + (first + at)[None, :],
            mask=column_ok[:, None] & inside[None, :],
            other=0.0,
        )
        found = tl.dot(a, tl.trans(b), found, input_precision="ieee")
    return found


@triton.jit
def pick(
    left,
    right,
    start,
    count,
    bound,
    best,
    at,
    n_rows,
    n_columns,
    width,
    n_positives,
    GAP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """For each row and positive k the first column of another label with the least bits of d, or of bound - d."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_ok = rows < n_rows
    first = tl.load(start + rows, mask=row_ok, other=0)
    end = first + tl.load(count + rows, mask=row_ok, other=0)
    for left_edge in range(0, n_columns, BLOCK):
        columns = left_edge + tl.arange(0, BLOCK)
        column_ok = columns < n_columns
        found = squared(left, right, rows, columns, row_ok, column_ok, width, BLOCK)
        same = (columns[None, :] >= first[:, None]) & (columns[None, :] < end[:, None])
        out = same | (column_ok[None, :] == 0)
        place = rows.to(tl.int64)  # of the row's k-th number
        for _ in range(n_positives):
            value = found
            if GAP:
                value = tl.load(bound + place, mask=row_ok, other=0.0)[:, None] - found
            bits = tl.where(out, float("inf"), value).to(tl.int32, bitcast=True)
            least = tl.min(bits, 1)
            column = left_edge + tl.argmin(bits, 1, tie_break_left=True)
            before = tl.load(best + place, mask=row_ok, other=0)
            better = row_ok & (least < before)
            tl.store(best + place, least, mask=better)
            tl.store(at + place, column, mask=better)
            place += n_rows


@triton.jit
def weigh(
    left,
    right,
    values,
    bound,
    weight,
    limit,
    start,
    count,
    active,
    near,
    out,
    n_rows,
    n_columns,
    n_anchors,
    width,
    n_positives,
    OWN: tl.constexpr,
    DOWN: tl.constexpr,
    ROOT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Coefficients of a block of rows with all columns, times the columns' values: `out` (R, width + 2).

    OWN: rows are anchors, whose triplets with the column as the negative count. DOWN: columns are anchors, and the row
    is the negative. The programs of the first WIDTH columns of the gradient count `active` (K, n_anchors) as well, and
    write the last two columns."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    wide = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    is_first = tl.program_id(1) == 0
    row_ok, wide_ok = rows < n_rows, wide < width
    row_first = tl.zeros([BLOCK], tl.int64)
    row_end = tl.zeros([BLOCK], tl.int64)
    row_weight = tl.zeros([BLOCK], tl.float32)
    row_limit = tl.zeros([BLOCK], tl.float32)
    if OWN:
        row_first = tl.load(start + rows, mask=row_ok, other=0)
        row_end = row_first + tl.load(count + rows, mask=row_ok, other=0)
        row_weight = tl.load(weight + rows, mask=row_ok, other=0.0)
        row_limit = tl.load(limit + rows, mask=row_ok, other=0.0)
    pushed = tl.zeros([BLOCK, WIDTH], tl.float32)
    lengths = tl.zeros([BLOCK], tl.float32)
    ones = tl.zeros([BLOCK], tl.float32)
    for left_edge in range(0, n_columns, BLOCK):
        columns = left_edge + tl.arange(0, BLOCK)
        column_ok = columns < n_columns
        found = squared(left, right, rows, columns, row_ok, column_ok, width + 2, BLOCK)
        inside = row_ok[:, None] & column_ok[None, :]
        column_limit = tl.zeros([BLOCK], tl.float32)
        if OWN:
            same = (columns[None, :] >= row_first[:, None]) & (columns[None, :] < row_end[:, None])
        else:
            column_first = tl.load(start + columns, mask=column_ok, other=0)
            column_end = column_first + tl.load(count + columns, mask=column_ok, other=0)
            same = (rows[:, None] >= column_first[None, :]) & (rows[:, None] < column_end[None, :])
            column_limit = tl.load(limit + columns, mask=column_ok, other=0.0)
        negative = inside & (same == 0)
        total = tl.zeros([BLOCK, BLOCK], tl.float32)
        if OWN:
            place = rows.to(tl.int64)
            for _ in range(n_positives):
                edge = tl.load(bound + place, mask=row_ok, other=float("-inf"))
                hit = (negative & (found < edge[:, None])).to(tl.float32)
                total += hit
                counted = tl.load(active + place, mask=row_ok & is_first, other=0.0) + tl.sum(hit, 1)
                tl.store(active + place, counted, mask=row_ok & is_first)
                place += n_anchors
            total = total * row_weight[:, None]
        if DOWN:
            from_columns = tl.zeros([BLOCK, BLOCK], tl.float32)
            place = columns.to(tl.int64)
            for _ in range(n_positives):
                edge = tl.load(bound + place, mask=column_ok, other=float("-inf"))
                from_columns += (negative & (found < edge[None, :])).to(tl.float32)
                place += n_anchors
            total += from_columns * tl.load(weight + columns, mask=column_ok, other=0.0)[None, :]
        if ROOT:
            close = negative & (found < tl.maximum(row_limit[:, None], column_limit[None, :]))
            any_close = tl.max(tl.max(close.to(tl.int32), 1), 0)
            tl.store(near, 1, mask=any_close > 0)
            total = total * tl.rsqrt(tl.maximum(found, 1.2e-38))
        stride = width + 2
        part = tl.load(
            values + columns[:, None].to(tl.int64) * stride + wide[None, :],
            mask=column_ok[:, None] & wide_ok[None, :],
            other=0.0,
        )
        pushed = tl.dot(total, part, pushed, input_precision="ieee")
        square = tl.load(values + columns.to(tl.int64) * stride + width, mask=column_ok, other=0.0)
        lengths += tl.sum(total * square[None, :], 1)
        ones += tl.sum(total, 1)
    place = rows.to(tl.int64) * (width + 2)
    tl.store(out + place[:, None] + wide[None, :], pushed, mask=row_ok[:, None] & wide_ok[None, :])
    tl.store(out + place + width, lengths, mask=row_ok & is_first)
    tl.store(out + place + width + 1, ones, mask=row_ok & is_first)


POINTERS = {"at": "*i32", "best": "*i32", "near": "*i32", "start": "*i64", "count": "*i64"}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "pick": [{"GAP": gap} for gap in (False, True)],
    "weigh": [
        {"OWN": own, "DOWN": down, "ROOT": root}
        for own, down in ((True, True), (True, False), (False, True))
        for root in (False, True)
    ],
}


def compiled_for(capability: int, block: int, width: int) -> dict[str, Any]:
    """What Triton makes of each variant for a compute capability; no device is needed."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    made = {}
    for name, variants in VARIANTS.items():
        kernel = {"pick": pick, "weigh": weigh}[name]
        for flags in variants:
            constants = flags | {"BLOCK": block} | ({"WIDTH": width} if name == "weigh" else {})
            signature = {
                argument: "constexpr"
                if argument in constants
                else POINTERS.get(
                    argument, "i32" if argument.startswith("n_") or argument == "width" else "*fp32"
                )
                for argument in kernel.arg_names
            }
            source = ASTSource(kernel, signature, constants)
            made[f"{name} {flags}"] = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    return made
