"""Findings of a data check: what was found about which images and identities, as lines of a csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from facemetric.data.index import ImageIndex
from facemetric.data.lists import list_line
from facemetric.errors import plural
from facemetric.evaluation.audit.hashes import (
    EXPECTED,
    MIRROR,
    WIDEST,
    WIDEST_WITHIN,
    Chance,
    Pairs,
    chance_of,
    close_across,
    close_pairs,
    hash_signs,
)
from facemetric.evaluation.audit.labels import Judged, chance_score, dimensions
from facemetric.evaluation.audit.people import Alike

DUPLICATE = "duplicate"
ACROSS = "duplicate across identities"
ONE_PERSON = "one person"
MISLABELLED = "mislabelled"
TEST_NAME = "name in test"
TEST_IMAGE = "image in test"
TEST_PERSON = "person in test"
KINDS = (DUPLICATE, ACROSS, ONE_PERSON, MISLABELLED, TEST_NAME, TEST_IMAGE, TEST_PERSON)
BY_PEOPLE = (ONE_PERSON, MISLABELLED, TEST_PERSON)  # found by how strangers score in the set itself
LEAST_IDENTITIES = (
    100  # in whose scores chance can be read off; among 20 people some two are always the nearest
)
SURE = 0.5  # the most of a kind's findings that chance may account for, to be listed for use
COLUMNS = (
    *("kind", "identity_a", "image_a", "identity_b", "image_b", "score", "threshold", "note"),
    *("quality_a", "quality_b"),
)


class Finding(NamedTuple):
    """One line. `row_a` and `row_b` are the images' rows (-1: none), those of `* in test` kinds' b in the test set.

    `score` and `threshold`: bits of 255 that differ (low is alike) for images; for identities their cosine less the
    mean of what both have with their neighbours (high is alike); the share of other identities that are nearer for
    labels. `quality_a` and `quality_b`: of the faces of the images, 0..1; "" where none was looked for.
    """

    kind: str
    identity_a: str
    image_a: str
    identity_b: str
    image_b: str
    score: float
    threshold: float
    note: str = ""
    quality_a: float | str = ""
    quality_b: float | str = ""
    row_a: int = -1
    row_b: int = -1


class Close(NamedTuple):
    """Pairs of images with what is known of each: bits, whether one is mirrored, cosine (NaN: no weights)."""

    pairs: Pairs
    mirrored: np.ndarray
    cosine: np.ndarray


def image_findings(
    close: Close, index: ImageIndex, test: ImageIndex | None, limits: tuple[int, int], cosine_limit: float
) -> list[Finding]:
    """Duplicates among the close pairs: within `limits` bits (within an identity, across identities), or with
    more where the cosine reaches `cosine_limit` too. With `test` the second of each pair is of that set."""
    found = []
    other = index if test is None else test
    for i, j, bits, mirrored, cosine in zip(*close.pairs[:3], close.mirrored, close.cosine, strict=True):
        same = test is None and index.identity[i] == index.identity[j]
        limit = limits[0] if same else limits[1]
        if bits > limit and not cosine >= cosine_limit:
            continue
        notes = ["mirrored"] if mirrored else []
        notes += [f"cosine {cosine:.3f}"] if bits > limit else []
        kind = TEST_IMAGE if test is not None else DUPLICATE if same else ACROSS
        a, b = index.identities[index.identity[i]], other.identities[other.identity[j]]
        names = index.name(int(i)), other.name(int(j))
        found.append(
            Finding(
                kind, a, names[0], b, names[1], int(bits), limit, "; ".join(notes), row_a=int(i), row_b=int(j)
            )
        )
    return found


def alike_findings(alike: Alike, index: ImageIndex, test: ImageIndex | None = None) -> list[Finding]:
    """Pairs of identities that look like one person."""
    kind, other = (ONE_PERSON, index) if test is None else (TEST_PERSON, test)
    return [
        Finding(
            kind,
            index.identities[i],
            "",
            other.identities[j],
            "",
            round(float(score), 4),
            round(alike.threshold, 4),
        )
        for i, j, score in zip(alike.first, alike.second, alike.score, strict=True)
    ]


def label_findings(judged: Judged, index: ImageIndex, share: float) -> list[Finding]:
    """Images that more than a share of the other identities are nearer to than the rest of their own; worst first."""
    rows = np.flatnonzero(judged.above > share)
    rows = rows[np.lexsort((judged.own[rows] - judged.best[rows], -judged.above[rows]))]
    return [
        Finding(
            MISLABELLED,
            index.identities[index.identity[i]],
            index.name(int(i)),
            index.identities[judged.nearest[i]],
            "",
            round(float(judged.above[i]), 4),
            share,
            f"cosine {judged.own[i]:.3f} to its own, {judged.best[i]:.3f} to identity_b",
            row_a=int(i),
        )
        for i in rows
    ]


def name_findings(index: ImageIndex, test: ImageIndex) -> list[Finding]:
    """Identities of one name, without the source's prefix and letter case, in both sets."""
    theirs = {_bare(name): name for name in test.identities}
    both = [(name, theirs[_bare(name)]) for name in index.identities if _bare(name) in theirs]
    return [Finding(TEST_NAME, a, "", b, "", 1.0, 1.0) for a, b in both]


def with_quality(
    findings: Sequence[Finding], of_data: Mapping[str, float], of_test: Mapping[str, float]
) -> list[Finding]:
    """The findings with the qualities of their images' faces, by the images' names."""
    found = []
    for finding in findings:
        other = of_test if finding.kind == TEST_IMAGE else of_data
        qualities = of_data.get(finding.image_a, ""), other.get(finding.image_b, "")
        found.append(finding._replace(quality_a=qualities[0], quality_b=qualities[1]))
    return found


def _bare(name: str) -> str:
    return name.rpartition("/")[2].casefold()


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]], *, quoted: bool = False) -> str:
    """A csv with a header, each row cut to its columns. `quoted`: texts stand in quotes, a name `#a` too."""
    text = io.StringIO(newline="")
    writer = csv.writer(
        text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if quoted else csv.QUOTE_MINIMAL
    )
    writer.writerow(columns)
    writer.writerows(row[: len(columns)] for row in rows)
    return text.getvalue()


def to_leave_out(findings: Sequence[Finding], index: ImageIndex) -> dict[str, str]:
    """Image -> why, such that of each photograph one image is left, or none where two identities claim it.

    Of an identity's own copies the largest file stays."""
    groups = _groups([f for f in findings if f.kind == DUPLICATE], len(index))
    sizes = index.sizes()
    left: dict[str, str] = {}
    for rows in groups:
        kept = max(rows, key=lambda row: (sizes[row], -row))
        left |= {index.name(row): f"the same as {index.name(kept)}" for row in rows if row != kept}
    for finding in findings:
        if finding.kind == ACROSS:
            left[finding.image_a] = f"the same as {finding.image_b}"
            left[finding.image_b] = f"the same as {finding.image_a}"
    return dict(sorted(left.items()))


def _groups(findings: Sequence[Finding], count: int) -> Iterator[list[int]]:
    """Rows that are linked by findings, directly or through others."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for finding in findings:
        low, high = sorted((root(finding.row_a), root(finding.row_b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for row in sorted({row for finding in findings for row in (finding.row_a, finding.row_b)}):
        groups.setdefault(root(row), []).append(row)
    yield from groups.values()


def unsure_kinds(found: Mapping[str, int], expected: Mapping[str, float], identities: int) -> dict[str, str]:
    """Kinds whose findings are no better than chance, and why: they are shown, but in no list that is ready to use.

    `found` and `expected`: findings of each kind, and how many of them chance brings."""
    unsure = {}
    for kind in BY_PEOPLE:
        if not found.get(kind):
            continue
        if identities < LEAST_IDENTITIES:
            unsure[kind] = (
                f"{plural(identities, 'identity is', 'identities are')} too few to tell from chance "
                f"({LEAST_IDENTITIES} are needed)"
            )
        elif kind in expected and expected[kind] > SURE * found[kind]:
            unsure[kind] = f"chance alone brings {expected[kind]:.1f} of {found[kind]:,}"
    return unsure


def lists(
    findings: Sequence[Finding], index: ImageIndex, unsure: Mapping[str, str] | None = None
) -> dict[str, str]:
    """File name -> text: what other commands read, each line with its reason. Findings of `unsure` kinds are in
    findings.csv alone, with why."""
    unsure = unsure or {}
    every = [f._replace(note="; ".join(filter(None, (f.note, unsure.get(f.kind))))) for f in findings]
    findings = [f for f in findings if f.kind not in unsure]
    same = [(f.identity_a, f.identity_b, f.score) for f in findings if f.kind == ONE_PERSON]
    wrong = {f.image_a: f"looks like {f.identity_b}" for f in findings if f.kind == MISLABELLED}
    leaks: dict[str, str] = {}
    for finding in findings:
        if finding.kind in (TEST_NAME, TEST_IMAGE, TEST_PERSON):
            leaks.setdefault(finding.identity_a, f"{finding.kind}: {finding.image_b or finding.identity_b}")
    return {
        "findings.csv": csv_text(COLUMNS, every),
        "merge.csv": csv_text(("identity_a", "identity_b", "score"), same, quoted=True),
        "duplicates.txt": _with_reasons(to_leave_out(findings, index)),
        "mislabelled.txt": _with_reasons(wrong),
        "leave_out.txt": _with_reasons(leaks),
    }


def _with_reasons(names: dict[str, str]) -> str:
    return "".join(f"# {why}\n{list_line(name)}\n" for name, why in names.items())


class Side(NamedTuple):
    """The readable images of one set: hashes' frequencies (N, K), centred embeddings (N, D) with weights, and the
    quality of faces by the images' names where faces were looked for."""

    images: ImageIndex
    frequencies: np.ndarray
    embeddings: np.ndarray | None = None
    quality: Mapping[str, float] = MappingProxyType({})


class CopyFigures(NamedTuple):
    """How near hashes of 255 bits count as a copy, within an identity, across identities and in the test set, and how
    many pairs were cut from the lists; the cosine is asked beyond these bits, with weights."""

    bits_within: int
    bits_across: int
    pairs_cut: int
    cosine_of_duplicates: float | None
    bits_test: int | None = None


def find_images(
    train: Side, test: Side | None, mirror_cosine: float, seed: int
) -> tuple[list[Finding], CopyFigures]:
    """Images that show the same, within the set and between it and the test set."""
    both = train.frequencies if test is None else np.concatenate([train.frequencies, test.frequencies])
    median_K = np.median(both, axis=0)
    signs = hash_signs(train.frequencies, median_K)
    chance = chance_of(signs, train.images.identity, seed=seed)
    count, sizes = len(signs), train.images.counts()
    within = int((sizes * (sizes - 1) // 2).sum())
    pairs = count * (count - 1) / 2
    limits = min(chance.limit(within), WIDEST_WITHIN), chance.limit(pairs - within)
    agree = agreeing_cosine(train, chance, pairs, mirror_cosine)
    widest = WIDEST if np.isfinite(agree) else max(limits)
    close = close_of(
        close_pairs(signs, widest),
        close_pairs(signs, widest, mirrored_NK=hash_signs(train.frequencies * MIRROR, median_K)),
        train,
        train,
    )
    findings = image_findings(close, train.images, None, limits, agree)
    figures = CopyFigures(*limits, close.pairs.cut, agree if np.isfinite(agree) else None)
    if test is None:
        return findings, figures
    pairs = count * len(test.frequencies)
    limit, agree = chance.limit(pairs), agreeing_cosine(train, chance, pairs, mirror_cosine)
    widest = WIDEST if np.isfinite(agree) else limit
    straight, turned = (
        close_across(signs, hash_signs(test.frequencies * mirror, median_K), widest) for mirror in (1, MIRROR)
    )
    close = close_of(straight, turned, train, test)
    findings += image_findings(close, train.images, test.images, (limit, limit), agree)
    return findings, figures._replace(pairs_cut=figures.pairs_cut + close.pairs.cut, bits_test=limit)


def agreeing_cosine(train: Side, chance: Chance, pairs: float, mirror_cosine: float) -> float:
    """The cosine that makes a pair within WIDEST bits a duplicate: what a mirror image reaches, and so high that
    of the pairs which chance brings so near less than EXPECTED do. Infinite without weights."""
    if train.embeddings is None:
        return np.inf
    share = EXPECTED / max(chance.within(WIDEST, 2 * pairs), EXPECTED)  # 2: straight and mirrored
    return max(mirror_cosine, chance_score(share, dimensions(train.embeddings)))


def close_of(straight: Pairs, turned: Pairs, a: Side, b: Side) -> Close:
    """Both kinds of pairs, nearest first; a pair found in both ways is kept once, as the nearer of them."""
    first, second, bits = (np.concatenate(columns) for columns in zip(straight[:3], turned[:3], strict=True))
    mirrored = np.arange(len(first)) >= len(straight.first)
    order = np.lexsort((mirrored, second, first, bits))
    _, once = np.unique(np.stack([first, second])[:, order], axis=1, return_index=True)
    kept = order[np.sort(once)]
    pairs = Pairs(first[kept], second[kept], bits[kept], straight.cut + turned.cut)
    cosine = np.full(len(kept), np.nan)
    if a.embeddings is not None and b.embeddings is not None:
        cosine = np.einsum("pd,pd->p", a.embeddings[pairs.first], b.embeddings[pairs.second])
    return Close(pairs, mirrored[kept], cosine)
