"""The Triton kernels of `gpu.py`: what one program does. Imported where they run, as Triton compiles them there.

Products are in float32 ("ieee"), so that the bounds on their rounding in `common.slack` hold; where a miner picks in
another precision, its operands are rounded, and nothing else. Offsets are int64: B x D passes 2^31 at 65,536 x 32,768,
B x K and B x CAP sooner.
"""

from __future__ import annotations

import triton
import triton.language as tl

TIE = tl.constexpr(1e-14)  # of a squared distance in float64: what is no farther than that is as far


def blocks(count: int, size: int) -> int:
    """How many blocks of a size cover a count."""
    return -(-count // size)


@triton.jit
def rounded_to_tf32(operand):
    """The nearest numbers of 10 bits after the first, ties away from 0."""
    bits = (operand.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def squared(
    x, y, x_square, y_square, rows, columns, row_ok, column_ok, width,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Squared distances (BLOCK, COLUMNS): |x|^2 + |y|^2 - 2 x.y."""
    product = tl.zeros([BLOCK, COLUMNS], tl.float32)
    at = tl.arange(0, CHUNK)
    for first in range(0, width, CHUNK):
        inside = first + at < width
        a = tl.load(
            x + rows[:, None].to(tl.int64) * width + (first + at)[None, :],
            mask=row_ok[:, None] & inside[None, :],
            other=0.0,
        )
        b = tl.load(
            y + columns[:, None].to(tl.int64) * width + (first + at)[None, :],
            mask=column_ok[:, None] & inside[None, :],
            other=0.0,
        )
        if PRECISION == "bf16":
            product = tl.dot(a.to(tl.bfloat16), tl.trans(b.to(tl.bfloat16)), product)
        else:
            if PRECISION == "tf32":  # a tensor core drops the bits that it has no room for
                a, b = rounded_to_tf32(a), rounded_to_tf32(b)
            product = tl.dot(a, tl.trans(b), product, input_precision=PRECISION)
    row_square = tl.load(x_square + rows, mask=row_ok, other=0.0)
    column_square = tl.load(y_square + columns, mask=column_ok, other=0.0)
    return (row_square[:, None] + column_square[None, :]) - 2.0 * product


@triton.jit
def pick(
    x, y, x_square, y_square, start, count, low, high, best, at, listed, n_listed,
    first_row, n_rows, n_columns, width, n_positives,
    GAP: tl.constexpr, LIST: tl.constexpr, CAP: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """For each row and positive the first column of another label with the least bits of d, or of high - d (GAP).

    LIST: the columns with low < d <= high as well, the first CAP of them, and how many there are."""
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_ok = local < n_rows
    rows = first_row + local
    first = tl.load(start + rows, mask=row_ok, other=0)
    end = first + tl.load(count + rows, mask=row_ok, other=0)
    for left_edge in range(0, n_columns, COLUMNS):
        columns = left_edge + tl.arange(0, COLUMNS)
        column_ok = columns < n_columns
        found = squared(
            x,
            y,
            x_square,
            y_square,
            rows,
            columns,
            row_ok,
            column_ok,
            width,
            PRECISION,
            BLOCK,
            COLUMNS,
            CHUNK,
        )
        same = (columns[None, :] >= first[:, None]) & (columns[None, :] < end[:, None])
        out = same | (column_ok[None, :] == 0)
        place = local.to(tl.int64) * n_positives  # of the row's k-th number
        for _ in range(n_positives):
            value = tl.maximum(found, 0.0)
            if GAP:
                value = tl.load(high + place, mask=row_ok, other=0.0)[:, None] - found
            bits = tl.where(out, float("inf"), value).to(tl.int32, bitcast=True)
            least = tl.min(bits, 1)
            better = row_ok & (least < tl.load(best + place, mask=row_ok, other=0))
            if tl.max(better.to(tl.int32), 0) > 0:  # seldom, after the first columns
                column = left_edge + tl.argmin(bits, 1, tie_break_left=True)
                tl.store(best + place, least, mask=better)
                tl.store(at + place, column, mask=better)
            if LIST:
                above = found > tl.load(low + place, mask=row_ok, other=0.0)[:, None]
                inside = (above & (value >= 0) & (out == 0) & row_ok[:, None]).to(tl.int32)
                more = tl.sum(inside, 1)
                if tl.max(more, 0) > 0:  # as seldom as two distances that rounding cannot tell apart
                    known = tl.load(n_listed + place, mask=row_ok, other=0)
                    slot = known[:, None] + tl.cumsum(inside, 1) - 1
                    tl.store(
                        listed + place[:, None] * CAP + slot,
                        columns[None, :] + tl.zeros_like(slot),
                        mask=(inside > 0) & (slot < CAP),
                    )
                    tl.store(n_listed + place, known + more, mask=row_ok)
            place += 1
        tl.debug_barrier()  # what a thread wrote another may read with the next columns


@triton.jit
def exact(x, y, row, columns, column_ok, width, COLUMNS: tl.constexpr, CHUNK: tl.constexpr):
    """Squared distances (COLUMNS,) of one row and some columns by direct difference, in float64."""
    total = tl.zeros([COLUMNS], tl.float64)
    at = tl.arange(0, CHUNK)
    for first in range(0, width, CHUNK):
        inside = first + at < width
        a = tl.load(x + row * width + first + at, mask=inside, other=0.0).to(tl.float64)
        b = tl.load(
            y + columns[:, None].to(tl.int64) * width + (first + at)[None, :],
            mask=column_ok[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float64)
        away = tl.where(inside[None, :], b - a[None, :], 0.0)
        total += tl.sum(away * away, 1)
    return total


@triton.jit
def settle(
    x, y, start, count, at_p, best, high, near, at, listed, n_listed,
    first_row, n_columns, width, n_positives,
    GAP: tl.constexpr, CAP: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Chooses again, in float64, what float32 could not: one program for each row and positive.

    The listed columns are looked at first; where there are too many of them, or where the negative is so near (below
    `near`) that rounding orders all of them, every column is. x and y are the rows as they came."""
    pair = tl.program_id(0).to(tl.int64)
    row = first_row + pair // n_positives
    limit = tl.load(near + row)
    nearest = tl.load(best + pair).to(tl.float32, bitcast=True)
    if GAP:
        nearest = tl.load(high + pair) - nearest
    doubtful = tl.load(n_listed + pair)
    every = (doubtful > CAP) | (nearest <= limit)
    if every | (doubtful > 0):
        lane = tl.arange(0, COLUMNS)
        bound = tl.zeros([1], tl.float64)
        if GAP:
            p = tl.load(at_p + pair) + tl.zeros([COLUMNS], tl.int64)
            own = exact(x, y, row, p, lane == 0, width, COLUMNS, CHUNK)
            bound = tl.sum(tl.where(lane == 0, own, 0.0), 0) * (1 + TIE) + tl.zeros([1], tl.float64)
        if every:
            first = tl.load(start + row)
            end = first + tl.load(count + row)
            chosen = tl.full([1], 0, tl.int64)
            least = tl.full([1], 0x7FFFFFFFFFFFFFFF, tl.int64)
            for left_edge in range(0, n_columns, COLUMNS):
                columns = left_edge + lane
                column_ok = (columns < n_columns) & ((columns < first) | (columns >= end))
                gap = exact(x, y, row, columns, column_ok, width, COLUMNS, CHUNK)
                if GAP:
                    gap = bound - gap
                bits = tl.where(column_ok, gap, float("inf")).to(tl.int64, bitcast=True)
                smallest = tl.min(bits, 0)
                column = left_edge + tl.argmin(bits, 0, tie_break_left=True)
                chosen = tl.where(smallest < least, column.to(tl.int64), chosen)
                least = tl.minimum(least, smallest)
            tl.store(at + pair + tl.zeros([1], tl.int64), chosen.to(tl.int32))
        else:
            columns = tl.load(listed + pair * CAP + lane, mask=lane < doubtful, other=0)
            found = exact(x, y, row, columns, lane < doubtful, width, COLUMNS, CHUNK)
            farther = tl.where((lane < doubtful) & (found > bound), found, float("inf"))
            if tl.min(farther, 0) < float("inf"):
                at_least = tl.argmin(farther, 0, tie_break_left=True)
                tl.store(at + pair, tl.sum(tl.where(lane == at_least, columns, 0), 0).to(tl.int32))


@triton.jit
def draw(
    x, y, x_square, y_square, start, count, drawn, at,
    first_row, n_rows, n_columns, width, n_positives, low, high, power, other_power, quarter,
    PRECISION: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """For each row and positive the column where `drawn` (0..1) of the row's weights are passed: three walks,
    for the largest weight, for their sum, and for the place.

    A weight is s^power (1 - s quarter)^other_power of the squared distance s, held to low..high."""
    local = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row_ok = local < n_rows
    rows = first_row + local
    first = tl.load(start + rows, mask=row_ok, other=0)
    end = first + tl.load(count + rows, mask=row_ok, other=0)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)  # logarithm of a weight
    whole = tl.zeros([BLOCK], tl.float64)
    for walk in tl.static_range(3):
        passed = tl.zeros([BLOCK], tl.float64)
        for left_edge in range(0, n_columns, COLUMNS):
            columns = left_edge + tl.arange(0, COLUMNS)
            column_ok = columns < n_columns
            found = squared(
                x,
                y,
                x_square,
                y_square,
                rows,
                columns,
                row_ok,
                column_ok,
                width,
                PRECISION,
                BLOCK,
                COLUMNS,
                CHUNK,
            )
            found = tl.minimum(tl.maximum(found, low), high)
            same = (columns[None, :] >= first[:, None]) & (columns[None, :] < end[:, None])
            negative = (same == 0) & column_ok[None, :]
            logarithm = tl.log(found) * power + tl.log(1.0 - found * quarter) * other_power
            if walk == 0:
                largest = tl.maximum(largest, tl.max(tl.where(negative, logarithm, float("-inf")), 1))
            else:
                weight = tl.where(negative, tl.exp(logarithm - largest[:, None]), 0.0).to(tl.float64)
                more = tl.sum(weight, 1)
                if walk == 2:
                    below = passed[:, None] + tl.cumsum(weight, 1)
                    place = local.to(tl.int64) * n_positives
                    for _ in range(n_positives):
                        goal = tl.load(drawn + place, mask=row_ok, other=2.0) * whole
                        here = row_ok & (goal >= passed) & (goal < passed + more)
                        column = left_edge + tl.sum((below <= goal[:, None]).to(tl.int32), 1)
                        tl.store(at + place, tl.minimum(column, n_columns - 1), mask=here)
                        place += 1
                passed += more
        whole = passed


@triton.jit
def weigh(
    x, y, x_square, y_square, x_raw, y_raw, d_ap, bound, weight, limit, start, count,
    active, loss, row_sum, out,
    n_rows, n_columns, n_positives, width, margin,
    OWN: tl.constexpr, DOWN: tl.constexpr, ROOT: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of rows: `out` (R, width) = sum_j C_ij (y_j - x_i), C the slopes of all triplets.

    OWN: rows are anchors, whose triplets with the column as the negative count. DOWN: columns are anchors, and the row
    is the negative. The programs of the first WIDTH columns of the gradient write what the triplets of their anchors
    cost, and add up `active` (anchors, K). Plain distances (ROOT) nearer than `limit` are computed again by direct
    difference."""
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
    ones = tl.zeros([BLOCK], tl.float32)
    cost = tl.zeros([BLOCK], tl.float64)
    away_sum = tl.zeros([BLOCK], tl.float64)
    for left_edge in range(0, n_columns, COLUMNS):
        columns = left_edge + tl.arange(0, COLUMNS)
        column_ok = columns < n_columns
        found = squared(
            x, y, x_square, y_square, rows, columns, row_ok, column_ok, width, "ieee", BLOCK, COLUMNS, CHUNK
        )
        column_limit = tl.zeros([COLUMNS], tl.float32)
        if OWN:
            same = (columns[None, :] >= row_first[:, None]) & (columns[None, :] < row_end[:, None])
        else:
            column_first = tl.load(start + columns, mask=column_ok, other=0)
            column_end = column_first + tl.load(count + columns, mask=column_ok, other=0)
            same = (rows[:, None] >= column_first[None, :]) & (rows[:, None] < column_end[None, :])
        if DOWN:
            column_limit = tl.load(limit + columns, mask=column_ok, other=0.0)
        negative = row_ok[:, None] & column_ok[None, :] & (same == 0)
        close = negative & (found < tl.maximum(row_limit[:, None], column_limit[None, :]))
        any_close = tl.max(tl.max(close.to(tl.int32), 1), 0)
        if ROOT:  # noqa: SIM102 (known when compiled)
            if any_close > 0:
                direct = tl.zeros([BLOCK, COLUMNS], tl.float32)
                for j in range(width):
                    a = tl.load(x_raw + rows.to(tl.int64) * width + j, mask=row_ok, other=0.0)
                    b = tl.load(y_raw + columns.to(tl.int64) * width + j, mask=column_ok, other=0.0)
                    step = a[:, None] - b[None, :]
                    direct += step * step
                found = tl.where(close, direct, found)
        d_an = found
        if ROOT:
            d_an = tl.sqrt(tl.maximum(found, 0.0))
        total = tl.zeros([BLOCK, COLUMNS], tl.float32)
        if OWN:
            place = rows.to(tl.int64) * n_positives
            for _ in range(n_positives):
                own = tl.load(d_ap + place, mask=row_ok, other=float("-inf"))
                if SOFT:
                    gap = own[:, None] - d_an
                    lost = tl.maximum(gap, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(gap)))
                    slope = tl.where(negative, 1.0 / (1.0 + tl.exp(-gap)), 0.0)
                    lost = tl.where(negative, lost, 0.0)
                else:
                    edge = tl.load(bound + place, mask=row_ok, other=float("-inf"))
                    slope = (negative & (found < edge[:, None])).to(tl.float32)
                    lost = tl.where(slope > 0, (own + margin)[:, None] - d_an, 0.0)
                total += slope
                cost += tl.sum(lost, 1).to(tl.float64)
                counted = tl.load(active + place, mask=row_ok & is_first, other=0.0) + tl.sum(slope, 1)
                tl.store(active + place, counted, mask=row_ok & is_first)
                place += 1
            total = total * row_weight[:, None]
            away_sum += tl.sum(tl.where(negative, d_an, 0.0), 1).to(tl.float64)
        if DOWN:
            from_columns = tl.zeros([BLOCK, COLUMNS], tl.float32)
            place = columns.to(tl.int64) * n_positives
            for _ in range(n_positives):
                if SOFT:
                    theirs = tl.load(d_ap + place, mask=column_ok, other=float("-inf"))
                    from_columns += tl.where(negative, 1.0 / (1.0 + tl.exp(d_an - theirs[None, :])), 0.0)
                else:
                    edge = tl.load(bound + place, mask=column_ok, other=float("-inf"))
                    from_columns += (negative & (found < edge[None, :])).to(tl.float32)
                place += 1
            total += from_columns * tl.load(weight + columns, mask=column_ok, other=0.0)[None, :]
        if ROOT:
            total = tl.where(d_an > 0, total / tl.where(d_an > 0, d_an, 1.0), 0.0)
            if any_close > 0:  # a large factor of a small difference: never as a difference of products
                part_x = tl.load(
                    x_raw + rows[:, None].to(tl.int64) * width + wide[None, :],
                    mask=row_ok[:, None] & wide_ok[None, :],
                    other=0.0,
                )
                for j in range(COLUMNS):
                    factor = tl.sum(tl.where(close & (columns[None, :] == left_edge + j), total, 0.0), 1)
                    ok = wide_ok & (left_edge + j < n_columns)
                    line_at = (tl.zeros([WIDTH], tl.int64) + left_edge + j) * width + wide
                    line = tl.load(y_raw + line_at, mask=ok, other=0.0)
                    pushed += factor[:, None] * (line[None, :] - part_x)
                total = tl.where(close, 0.0, total)
        part = tl.load(
            y + columns[:, None].to(tl.int64) * width + wide[None, :],
            mask=column_ok[:, None] & wide_ok[None, :],
            other=0.0,
        )
        pushed = tl.dot(total, part, pushed, input_precision="ieee")
        ones += tl.sum(total, 1)
        tl.debug_barrier()  # `active` is read again with the next columns
    mine = rows[:, None].to(tl.int64) * width + wide[None, :]
    inside = row_ok[:, None] & wide_ok[None, :]
    pushed -= ones[:, None] * tl.load(x + mine, mask=inside, other=0.0)
    tl.store(out + mine, pushed, mask=inside)
    if OWN:
        tl.store(loss + rows, cost, mask=row_ok & is_first)
        tl.store(row_sum + rows, away_sum, mask=row_ok & is_first)
