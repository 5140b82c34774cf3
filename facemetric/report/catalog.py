"""What `facemetric weights` prints: the weights that come with facemetric, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facemetric.model.folder import MODEL, read_config, shipped_weights
from facemetric.report.columns import aligned

# Heading -> figure of the weights' own config.json, and how it is shown.
FIGURES = {
    "LFW accuracy": ("lfw_accuracy", "{:.2%}"),
    "TAR @ FAR=1e-3": ("lfw_tar_at_far_0.001", "{:.3f}"),
    "images/s, 2 cores": ("images_per_second", "{:,.0f}"),
}


def describe_weights(folder: Path) -> dict[str, Any]:
    """Name, size in MB, architecture, picture, embedding, and all figures of a weights folder."""
    config = read_config(folder)
    ours = config["facemetric"]
    return {
        "name": folder.name,
        "megabytes": (folder / MODEL).stat().st_size / 1e6,
        "architecture": config["architecture"],
        "pixels": ours["preprocess"]["size"][0],
        "embedding_size": ours["embedding_size"],
    } | ours.get("metrics", {})


def catalog_text(found: list[dict[str, Any]]) -> str:
    """The table of described weights; a figure that they do not have is a dash."""
    if not found:
        return "no weights came with this installation"
    rows = [["name", "MB", "architecture", "pixels", "embedding", *FIGURES]]
    for each in found:
        figures = [shown.format(each[key]) if key in each else "-" for key, shown in FIGURES.values()]
        size = f"{each['megabytes']:.1f}"
        sides = [str(each["pixels"]), str(each["embedding_size"])]
        rows.append([each["name"], size, each["architecture"], *sides, *figures])
    return aligned(rows)


def list_weights() -> None:
    """Print the shipped weights: name, size, speed and accuracy, as each one's model card says."""
    print(catalog_text([describe_weights(folder) for folder in shipped_weights()]))
