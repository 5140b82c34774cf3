"""Pictures of the figures, drawn without a display, and the points of a ROC as csv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from facemetric.errors import DataError
from facemetric.evaluation.curves import Histogram, Roc
from facemetric.files import write_whole

DPI = 144
# Told apart by people who do not see red and green, and in print: Okabe and Ito's order, then line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKS = ("o", "^", "s", "D")
NAMED = 12  # people in the legend of a map
STYLES = ("-", "--", ":", "-.")


def draw_roc(file: str | Path, curves: Mapping[str, Roc]) -> Path:
    """ROC of each named curve, FAR on a log axis from the lowest that any curve measures. Writes a png."""
    if not curves:
        raise DataError("no curve to draw; needed one name and Roc or more")
    figure, axes = _figure()
    lowest = 1.0
    for i, (name, curve) in enumerate(curves.items()):
        positive = curve.far > 0
        lowest = min(lowest, float(curve.far[positive].min()))
        # At FAR 0 a log axis has no place: the first point is carried to the left edge at its height.
        start = float(curve.tar[~positive].max())
        far, tar = curve.far[positive], curve.tar[positive]
        axes.step(
            np.concatenate([[lowest / 2], far]),
            np.concatenate([[start], tar]),
            where="post",
            label=label_of(name),
            **_line(i),
        )
    axes.set_xscale("log")
    axes.set_xlim(min(lowest, 0.5), 1)
    axes.set_ylim(0, 1.005)
    axes.set_xlabel("false accept rate (log)")
    axes.set_ylabel("true accept rate")
    axes.legend(loc="lower right", frameon=False)
    return _save(figure, file)


def draw_det(
    file: str | Path,
    curves: Mapping[str, Roc],
    names: tuple[str, str] = ("false accept rate", "false reject rate"),
) -> Path:
    """Detection error trade-off of each named curve: false rejects over false accepts, whose `names` the axes say.
    Writes a png."""
    if not curves:
        raise DataError("no curve to draw; needed one name and Roc or more")
    figure, axes = _figure()
    lowest = np.array([0.1, 0.1])
    for i, (name, curve) in enumerate(curves.items()):
        # A log axis has no place for 0; the curve leaves the picture there. A perfect one is never in it.
        shown = (curve.far > 0) & (curve.tar < 1)
        lowest = np.minimum(lowest, [curve.far[shown].min(initial=1), (1 - curve.tar[shown]).min(initial=1)])
        axes.step(curve.far[shown], 1 - curve.tar[shown], where="post", label=label_of(name), **_line(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(lowest[0], 1)
    axes.set_ylim(lowest[1], 1)
    axes.set_xlabel(f"{names[0]} (log)")
    axes.set_ylabel(f"{names[1]} (log)")
    axes.legend(loc="lower left", frameon=False)
    return _save(figure, file)


def draw_scores(
    file: str | Path, counts: Histogram, *, thresholds: Mapping[str, float] | None = None
) -> Path:
    """Densities of genuine and impostor scores, thresholds as lines. Writes a png."""
    figure, axes = _figure()
    for i, (name, kind) in enumerate((("one person", counts.genuine), ("two people", counts.impostor))):
        density = kind / max(1, kind.sum()) / np.diff(counts.edge)
        label = f"{name} ({kind.sum():,})"
        axes.stairs(density, counts.edge, fill=True, alpha=0.55, color=COLOURS[i], label=label)
    for i, (name, value) in enumerate((thresholds or {}).items()):
        if np.isfinite(value):
            axes.axvline(
                value,
                color="#555555",
                linestyle=STYLES[i % len(STYLES)],
                label=label_of(f"{name}: {value:.3f}"),
            )
    used = np.flatnonzero(counts.genuine + counts.impostor)
    axes.set_xlim(counts.edge[used[0]], counts.edge[used[-1] + 1])
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("density")
    axes.legend(frameon=False)
    return _save(figure, file)


def draw_map(
    file: str | Path, place: npt.ArrayLike, identities: npt.ArrayLike, *, title: str, axis: bool = True
) -> Path:
    """Images as points at `place` (N, 2); the NAMED identities of most images have a colour and a mark of
    their own, all others are grey. `axis`: the places are numbers that mean something. Writes a png."""
    place_N2, identity_N = np.asarray(place, dtype=np.float64), np.asarray(identities)
    if place_N2.shape != (len(identity_N), 2) or not len(identity_N):
        raise DataError(
            f"places of shape {place_N2.shape} for {len(identity_N)} identities; needed (images, 2)"
        )
    names, sizes = np.unique(identity_N, return_counts=True)
    first = np.argsort(-sizes, kind="stable")[:NAMED]
    figure, axes = _figure()
    figure.set_size_inches(8.5, 6.4)
    figure.subplots_adjust(left=0.06, right=0.72, bottom=0.06, top=0.94)
    rest = ~np.isin(identity_N, names[first])
    if rest.any():
        label = f"{len(names) - len(first):,} others"
        axes.plot(*place_N2[rest].T, ".", color="#bbbbbb", markersize=4, label=label)
    for i, name in enumerate(names[first]):
        mark = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i // len(COLOURS) % len(MARKS)]}
        axes.plot(
            *place_N2[identity_N == name].T,
            linestyle="",
            markersize=4,
            label=label_of(str(name)[:28]),
            **mark,
        )
    axes.set_title(title, fontsize=10)
    axes.set_aspect("equal", adjustable="datalim")
    axes.grid(False)
    if not axis:
        axes.set_axis_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return _save(figure, file)


def label_of(name: str) -> str:
    """A name as a legend shows it: bytes that are no UTF-8 as escapes, `$` as no formula, and a leading `_`, which
    matplotlib takes for "not in the legend", behind a space."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def write_roc_csv(
    file: str | Path, curves: Mapping[str, Roc], names: tuple[str, str] = ("far", "tar")
) -> Path:
    """Points of named curves as csv `curve,far,tar,threshold`, both rates by their `names`; accepting nothing has
    threshold `inf`."""

    def fill(path: Path) -> None:
        # Names that are no UTF-8 are written with escapes.
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["curve", *names, "threshold"])
            for name, curve in curves.items():
                columns = (curve.far.tolist(), curve.tar.tolist(), curve.threshold.tolist())
                writer.writerows((name, *point) for point in zip(*columns, strict=True))

    return write_whole(file, fill)


def _line(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}


def _figure() -> tuple[Figure, Any]:
    # No pyplot: its global state would touch the caller's figures and backend.
    figure = Figure(figsize=(6.4, 4.8), dpi=DPI)
    # Not a layout engine: it draws everything twice to find these margins.
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.12, top=0.97)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(True, which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, file: str | Path) -> Path:
    return write_whole(file, lambda path: figure.savefig(path, format="png"))
