"""What `facemetric cluster` does: group images by person, measure, and draw a sheet of each group."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from facemetric.commands.clustering.groups import Groups, gone_note, group, look_up, read_given
from facemetric.commands.clustering.page import write_page
from facemetric.commands.embedding import announced, check_config, embed_data, faces_of_data
from facemetric.commands.out_folder import claim_out, results_come
from facemetric.config import ClusterConfig, config_dict, require
from facemetric.config.calls import takes_options
from facemetric.config.checks import check_cluster
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.readers.sources import is_loose
from facemetric.errors import plural
from facemetric.evaluation.clustering.agreement import Agreement, agreement
from facemetric.evaluation.clustering.clusters import Clusters
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.thresholds import Stored, check_same_weights, stored_threshold
from facemetric.files import write_text_whole, write_whole
from facemetric.machine import progress_bar, say
from facemetric.model.weights.folder import find_weights
from facemetric.model.weights.opened import open_weights
from facemetric.report.pictures import MOST, Pictures, draw_sheet, rows_shown

if TYPE_CHECKING:
    import pandas as pd

SHEETS = "sheets"


@dataclass(frozen=True, repr=False)
class Clustered:
    """What was found: clusters of the rows of `table`, what they are called (`groups`), and how well they agree with
    the identities.

    `labelled` (N,) says which rows have an identity; `agreement` is over these, None without two identities.
    """

    out: Path
    table: EmbeddingTable
    clusters: Clusters
    groups: Groups
    labelled: npt.NDArray[np.bool_]
    agreement: Agreement | None
    stored: Stored | None = None
    quality: dict[str, float] = field(
        default_factory=dict
    )  # of faces 0..1 by name, where they were looked for

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        found: dict[str, Any] = {
            "clustering": self.clusters.to_dict(),
            "groups": self.groups.to_dict(self.clusters),
        }
        if self.stored is not None:
            found["threshold"] = self.stored.to_dict()
        if self.agreement is not None:
            found["agreement"] = self.agreement.to_dict()
        return found

    def __repr__(self) -> str:
        return f"Clustered({self.clusters!r}, written to {str(self.out)!r})"

    def text(self) -> str:
        """What the terminal says."""
        clusters = self.clusters
        sizes = clusters.sizes()
        by = f"cosine {clusters.threshold:.4f}"
        if self.stored is not None:
            by += f", which is FAR {self.stored.threshold.wanted_far:g} by {self.stored.chosen_on}"
        noise = f" ({clusters.noise} of them noise)" if clusters.noise else ""
        lines = [
            f"{plural(len(clusters.number), 'image')} in {plural(len(sizes), 'cluster')} ({clusters.method}, {by})",
            f"{plural(int((sizes == 1).sum()), 'cluster')} of one image{noise}, the largest has {sizes[0]:,}",
        ]
        lines += self.groups.text(clusters)
        if self.agreement is not None:
            a = self.agreement
            if not self.labelled.all():
                some = f"{(~self.labelled).sum()} of {len(self.labelled)} images"
                lines.append(f"{some} have no identity: the figures are of the others")
            parts = {"precision": a.precision, "recall": a.recall, "F": a.f}
            text = ", ".join(f"{name} {i.value:.4f} [{i.low:.4f}, {i.high:.4f}]" for name, i in parts.items())
            lines.append(f"against {plural(a.identities, 'identity')}: B-cubed {text}")
            lines.append(f"purity {a.purity:.4f}, NMI {a.nmi:.4f}, ARI {a.ari:.4f}")
        return "\n".join([*lines, f"written to {self.out}"])

    def to_frame(self) -> pd.DataFrame:
        """A row for each image, as clusters.csv has them: path, cluster, distance_to_centre, name, confirmed, quality
        (NaN where no face was looked for); and its identity."""
        import pandas as pd

        order, rank_N = self.order(), self.clusters.number
        columns = {
            "path": self.table.paths[order],
            "cluster": self.groups.number[rank_N[order]],
            "distance_to_centre": self.clusters.distance[order],
            "name": np.array(self.groups.name, dtype=object)[rank_N[order]],
            "confirmed": self.groups.confirmed[order],
            "quality": [self.quality.get(str(name), np.nan) for name in self.table.paths[order]],
            "identity": self.table.identities[order],
        }
        return pd.DataFrame(columns)

    def order(self) -> npt.NDArray[np.int64]:
        """The rows (N,), the largest cluster first, and in each the nearest to its centre."""
        return np.lexsort((self.clusters.distance, self.clusters.number))

    def records(self, most: int, images: int = MOST) -> list[ClusterRecord]:
        """The `most` largest clusters of two images or more, with the rows of up to so many images."""
        found = cluster_records(self.clusters, self.table.identities, self.labelled, most=most, images=images)
        return [
            replace(each, number=int(self.groups.number[each.number]), name=self.groups.name[each.number])
            for each in found
        ]


@dataclass(frozen=True)
class ClusterRecord:
    """One cluster as a sheet or a report shows it.

    `number` and `name` as in clusters.csv; `images` in all. `identity` is the most frequent of its labelled images,
    `purity` its share of them, 0..1; "" and None where none is labelled. `rows` of the table, nearest to the
    centre first, are all of them or the nearest and the farthest; `others[i]`: row i has another identity.
    """

    number: int
    images: int
    identity: str
    purity: float | None
    rows: tuple[int, ...]
    others: tuple[bool, ...]
    name: str = ""

    def title(self) -> str:
        """The title above its pictures."""
        text = (
            f"cluster {self.number}{f' ({self.name})' if self.name else ''}: {plural(self.images, 'image')}"
        )
        if self.purity is not None:
            text += f", {self.purity:.0%} {self.identity}"
        if len(self.rows) < self.images:
            half = len(self.rows) // 2
            text += f"; the {half} nearest to the centre, then the {len(self.rows) - half} farthest"
        return text


def cluster_records(
    clusters: Clusters,
    identities: npt.NDArray[np.str_],
    labelled: npt.NDArray[np.bool_],
    *,
    most: int,
    images: int = MOST,
) -> list[ClusterRecord]:
    """Records of the `most` largest clusters of two images or more, with up to `images` rows each."""
    records = []
    sizes = clusters.sizes()
    for number in range(min(most, int((sizes >= 2).sum()))):
        rows = clusters.rows(number)
        names, counts = np.unique(identities[rows[labelled[rows]]], return_counts=True)
        best = str(names[counts.argmax()]) if len(names) else ""
        shown = rows_shown(rows.tolist(), images)
        others = tuple(bool(labelled[row] and identities[row] != best) for row in shown)
        purity = float(counts.max() / counts.sum()) if len(names) else None
        records.append(ClusterRecord(number, len(rows), best, purity, tuple(shown), others))
    return records


@takes_options(ClusterConfig)
def cluster(config: ClusterConfig) -> Clustered:
    """Group images by person; the options are those of ClusterConfig.

    `cluster("photos", weights="runs/finetune")` is `facemetric cluster photos --weights runs/finetune`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_cluster(config)


def run_cluster(config: ClusterConfig) -> Clustered:
    """cluster, from a config."""
    check_config(config)
    check_cluster(config)
    require(config.sheets >= 0, f"--sheets is {config.sheets}; it must be at least 0")
    stored = threshold_of(config)
    given = read_given(config)
    index = announced(read_index(config.data, loose=True)) if config.data else None
    quality: dict[str, float] = {}
    if config.embeddings:
        table = EmbeddingTable.load(config.embeddings)
        if stored is not None:
            check_same_weights(table, find_weights(config.weights))
        claim_out(config)
    else:
        assert index is not None
        weights = open_weights(config.weights)
        claim_out(config, weights=weights, images=index)
        index, quality = faces_of_data(config, index, config.out / "faces", every=True)
        flip = stored.flip if stored is not None else config.flip
        table = embed_data(replace(config, flip=flip), index, weights)
    threshold = stored.threshold.cosine if stored is not None else config.threshold
    assert threshold is not None
    known = look_up(given, table)
    if note := gone_note(known):
        say(note)
    clusters, groups = group(config, table, threshold, known)
    labelled = np.array([config.labels and not is_loose(name) for name in table.identities.tolist()], bool)
    measured = measure(clusters, table, labelled, config.seed)
    found = Clustered(config.out, table, clusters, groups, labelled, measured, stored, quality)
    results_come(config)
    write_csv(found)
    record = found.to_dict() | {"options": config_dict(config)}
    text = json.dumps(record, indent=2) + "\n"
    write_text_whole(config.out / "clusters.json", text)
    draw_sheets(config, found, index)
    if config.page:
        page = write_page(config, table, clusters, groups, Pictures(table, index))
        say(f"name, join and part the groups in {page}")
    return found


def threshold_of(config: ClusterConfig) -> Stored | None:
    """The stored threshold to group by; None where --threshold gives one."""
    if config.threshold is not None:
        if not config.embeddings:
            find_weights(config.weights)  # before images are read
        return None
    stored = stored_threshold(find_weights(config.weights), config.far, name=config.weights)
    require(
        stored.flip or not config.flip,
        f"the threshold for FAR {config.far:g} was chosen without --flip: leave it out, or calibrate with --flip",
    )
    return stored


def measure(
    clusters: Clusters, table: EmbeddingTable, labelled: npt.NDArray[np.bool_], seed: int
) -> Agreement | None:
    """Agreement with the identities; None where there are not two."""
    if len(np.unique(table.identities[labelled])) < 2:
        return None
    return agreement(clusters.number[labelled], table.identities[labelled], seed=seed)


def write_csv(found: Clustered) -> None:
    """clusters.csv: path, cluster, cosine distance to its centre, name, whether a person confirmed it (1 or 0) and the
    face's quality; the largest cluster first."""
    clusters, groups = found.clusters, found.groups

    def fill(path: Path) -> None:
        # Names that are no UTF-8 are written with escapes.
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "cluster", "distance_to_centre", "name", "confirmed", "quality"])
            for row in found.order().tolist():
                rank = clusters.number[row]
                distance, sure = f"{clusters.distance[row]:.6f}", int(groups.confirmed[row])
                name = found.table.name(row)
                writer.writerow(
                    [
                        name,
                        int(groups.number[rank]),
                        distance,
                        groups.name[rank],
                        sure,
                        found.quality.get(name, ""),
                    ]
                )

    write_whole(found.out / "clusters.csv", fill)


def draw_sheets(config: ClusterConfig, found: Clustered, index: ImageIndex | None) -> None:
    """A sheet for each of the largest clusters; says how many of how many. Those of a run before are removed."""
    folder = found.out / SHEETS
    if old := list(folder.glob("cluster_*.jpg")):
        for sheet in old:
            sheet.unlink()
        if not any(folder.iterdir()):  # it may hold files of the user's
            folder.rmdir()
    if index is None:
        say("no sheets: name the images, as well as --embeddings, to draw them")
        return
    records = found.records(config.sheets)
    pictures = Pictures(found.table, index)
    for record in progress_bar(records, desc="sheets", unit="sheet"):
        file = folder / f"cluster_{record.number:05d}.jpg"
        draw_sheet(file, pictures, record.rows, title=record.title(), marked=record.others)
    several = plural(int((found.clusters.sizes() >= 2).sum()), "cluster")
    say(f"sheets of {len(records)} of {several} of two images or more in {folder} (--sheets)")
