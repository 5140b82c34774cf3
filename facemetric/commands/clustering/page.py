"""groups.html of a clustering: which groups it shows in which order, and which of them may be one person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from facemetric.commands.clustering.groups import Groups
from facemetric.config import ClusterConfig, config_command
from facemetric.errors import plural
from facemetric.evaluation.clustering.clusters import Clusters, alike_clusters
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.groups_page import PAGE, GroupsPage, write_groups_page
from facemetric.report.pictures import Pictures

BELOW = 0.15  # below the threshold of the clustering: so alike are groups that the page asks about
QUESTIONS = 120
CORRECTIONS = Path("corrections.csv")


def write_page(
    config: ClusterConfig, table: EmbeddingTable, clusters: Clusters, groups: Groups, pictures: Pictures
) -> Path:
    """Write groups.html into the out folder; the largest group first, in each the image nearest to its centre."""
    rows = np.lexsort((clusters.distance, clusters.number))
    rank = clusters.number[rows]
    names = {int(n): name for n, name in zip(groups.number, groups.name, strict=True) if name}
    page = GroupsPage(
        f"{plural(len(rows), 'photograph')} in {plural(len(groups.number), 'group')}",
        f"Grouped where the average similarity is {clusters.threshold:.4f} or more. "
        "Give names, take out what does not belong, join what does; then save.",
        rows,
        groups.number[rank],
        groups.confirmed[rows],
        names,
        max(groups.last, int(groups.number.max())),
        questions(table, clusters, groups),
        next_command(config),
    )
    return write_groups_page(config.out / PAGE, page, pictures)


def questions(
    table: EmbeddingTable, clusters: Clusters, groups: Groups
) -> tuple[tuple[int, int, float], ...]:
    """Groups (numbers) that may be one person, the most alike first; not those that a person has told apart."""
    found = alike_clusters(table.embeddings, clusters.number, clusters.threshold - BELOW)
    sure = np.zeros(len(groups.number), bool)
    sure[clusters.number[groups.confirmed]] = True
    asked = []
    for (one, other), score in zip(found.pair.tolist(), found.score.tolist(), strict=True):
        if not (sure[one] and sure[other]):
            asked.append((int(groups.number[one]), int(groups.number[other]), score))
    return tuple(asked[:QUESTIONS])


def next_command(config: ClusterConfig) -> str:
    """The command that goes on from this run with what the page saves."""
    corrections = config.corrections or CORRECTIONS
    return config_command("cluster", replace(config, onto=config.out, corrections=corrections))
