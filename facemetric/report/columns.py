"""Tables for a terminal."""

from __future__ import annotations


def aligned(rows: list[list[str]]) -> str:
    """Rows of texts as lines whose columns stand under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
