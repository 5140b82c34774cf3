"""The page's clusters: some of the images grouped without their names, and how well the groups fit the names."""

from __future__ import annotations

import math

import numpy as np

from facemetric.errors import plural
from facemetric.evaluation.clustering.agreement import Agreement, agreement
from facemetric.evaluation.clustering.clusters import Clusters, find_clusters
from facemetric.evaluation.curves import Ints, OperatingPoint
from facemetric.evaluation.figures import Figure, Heading
from facemetric.report.figures import grids
from facemetric.report.page import Case, Gallery, Grid, Picture
from facemetric.report.pictures import Pictures
from facemetric.report.record import Evaluation

SHOWN = 12  # clusters, and pictures of each


def groups_of(
    found: Evaluation, pictures: Pictures, rows: Ints, seed: int
) -> tuple[Grid | None, Gallery | None]:
    """Clusters of the images `rows` (M,) at the threshold of the lowest FAR that was measured; (None, None) where
    none was, or all images are of one person."""
    table = found.table
    identities = table.identities[rows]
    point = lowest_point(found)
    if point is None or len(np.unique(identities)) < 2:
        return None, None
    clusters = find_clusters(table.embeddings[rows], point.threshold)
    sizes = clusters.sizes()
    lead = (
        f"The {plural(len(rows), 'image')} of the map below, grouped by average similarity at the threshold "
        f"{point.threshold:.4f} of FAR = {point.wanted:g}, without a look at their names: "
        f"{plural(len(sizes), 'cluster')}, {int((sizes == 1).sum()):,} of them of one image."
    )
    grid = agreement_table(agreement(clusters.number, identities, seed=seed), lead)
    cases = []
    for number in range(min(SHOWN, int((sizes > 1).sum()))):
        cases.append(cluster_case(found, pictures, rows, clusters, number))
    if not cases:
        return grid, None
    lead = f"At most {SHOWN} pictures of each, those nearest to its centre first."
    return grid, Gallery("Largest clusters", lead, tuple(cases), "strips")


def lowest_point(found: Evaluation) -> OperatingPoint | None:
    """The lowest FAR of the verification that has a threshold."""
    points = found.verification.points if found.verification is not None else ()
    usable = [p for p in points if p.supported and math.isfinite(p.threshold)]
    return min(usable, key=lambda p: p.wanted, default=None)


def agreement_table(found: Agreement, lead: str) -> Grid:
    """Purity, NMI, ARI and B-cubed."""
    heading = Heading("", lead)
    of_cluster = "of an image's cluster, the share that is its person"
    of_person = "of an image's person, the share that is in its cluster"
    (table,) = grids(
        [
            Figure(label.lower(), label, value, interval, heading, about=about)
            for label, value, interval, about in (
                ("B-cubed precision", found.precision.value, found.precision, of_cluster),
                ("B-cubed recall", found.recall.value, found.recall, of_person),
                ("B-cubed F", found.f.value, found.f, "harmonic mean of both"),
                ("Purity", found.purity, None, "clusters of one image make it 1"),
                ("NMI", found.nmi, None, "normalised mutual information"),
                ("ARI", found.ari, None, "adjusted Rand index, 0 by chance"),
            )
        ]
    )
    return table


def cluster_case(found: Evaluation, pictures: Pictures, rows: Ints, clusters: Clusters, number: int) -> Case:
    """A strip of one cluster's pictures, and who is in it."""
    members = rows[clusters.rows(number)]
    people, counts = np.unique(found.table.identities[members], return_counts=True)
    most = int(counts.argmax())
    text = f"{plural(len(members), 'image')} of {plural(len(people), 'person', 'people')}"
    text += f": {people[most]}" if len(people) == 1 else f"; {counts[most]} of {people[most]}"
    shown = members[:SHOWN].tolist()
    return Case(tuple(Picture(found.table.name(row), pictures.uri(row)) for row in shown), text=text)
