"""Pairs files as people write them: repeats, swaps, self pairs, odd folds, tabs; each against a plain twin.

    python tools/fuzz_pairs.py --cases 20000 --seed 0

A file is drawn (parted by commas, semicolons or tabs; labels in words or numbers; with or without folds; pairs that
stand twice, the other way round, under two spellings of a path, or hold an image with itself; now and then labels
that contradict one another, or folds that leave no threshold), read, and its pairs are listed and scored. Right is
what the twin says, which goes through the lines one by one: the same pairs in the same order, the same counts in the
notes, the same folds, AUC and fold accuracy, or a DataError in one line where it has one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric.commands.evaluating.inputs import list_pairs
from facemetric.data.pairs import read_pairs
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import pair_scores, verify_pairs

PEOPLE, IMAGES = 6, 4
WORDS = {True: ("1", "true", "same", "yes", "Same", "TRUE"), False: ("0", "false", "different", "no", "No")}
FOLDS = (("0", "1"), ("1", "2", "3"), ("a", "b"), ("10", "9", "2"), ("x", "1", "02"), ("only",))


class Line(NamedTuple):
    """A pair as a file has it: two spelt paths, the rows that they mean, what the label says, and the fold."""

    paths: tuple[str, str]
    rows: tuple[int, int]
    same: bool
    fold: str


class Expected(NamedTuple):
    """What the twin says: rows, `same` and folds of the pairs that count, and how many lines were left out."""

    rows: list[tuple[int, int]]
    same: list[bool]
    folds: list[str]
    itself: int
    repeated: int
    moved: int
    error: str  # a part of the DataError's text, "" where there is none


def table_of(seed: int) -> EmbeddingTable:
    """A few people with a few images each, some in folders."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(PEOPLE), IMAGES)
    emb = rng.normal(size=(PEOPLE, 8))[who] + 0.8 * rng.normal(size=(len(who), 8))
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    paths = np.array([f"set/p{person}/{row}.jpg" for row, person in enumerate(who)])
    return EmbeddingTable(emb.astype(np.float32), np.array([f"p{person}" for person in who]), paths)


def draw_lines(chance: random.Random, table: EmbeddingTable) -> list[Line]:
    """Some pairs, and some of them again in one way or another."""
    folds = chance.choice([(), *FOLDS])
    lines: list[Line] = []

    def spelt(row: int) -> str:
        path = str(table.paths[row])
        return chance.choice([path, path, path, path.removeprefix("set/"), f"/data/{path}", f"./{path}"])

    def add(one: int, other: int, same: bool) -> None:
        fold = chance.choice(folds) if folds else ""
        lines.append(Line((spelt(one), spelt(other)), (one, other), same, fold))

    for _ in range(chance.randint(1, 40)):
        one, other = chance.randrange(len(table)), chance.randrange(len(table))
        if chance.random() < 0.5:
            other = one // IMAGES * IMAGES + chance.randrange(IMAGES)
        if one != other or chance.random() < 0.2:
            add(one, other, bool(table.identities[one] == table.identities[other]))
    for _ in range(chance.choice([0, 0, 1, 5])):
        again = chance.choice(lines) if lines else None
        if again is not None:
            one, other = again.rows[:: chance.choice([1, -1])]
            add(one, other, again.same if chance.random() < 0.97 else not again.same)
    if chance.random() < 0.5:
        chance.shuffle(lines)
    return lines


def written(chance: random.Random, lines: list[Line]) -> str:
    """The lines as a csv of some kind."""
    mark = chance.choice([",", ";", "\t"])
    header = list(chance.choice([("image1_path", "image2_path", "label"), ("path_a", "path_b", "same")]))
    with_folds = bool(lines and lines[0].fold)
    header += ["fold"] * with_folds
    rows = [header]
    for line in lines:
        rows.append([*line.paths, chance.choice(WORDS[line.same]), *([line.fold] if with_folds else [])])
    order = chance.sample(range(len(header)), len(header)) if chance.random() < 0.3 else range(len(header))
    ending = chance.choice(["\n", "\r\n"])
    text = ending.join(mark.join(row[i] for i in order) for row in rows)
    return chance.choice(["", "\ufeff", "\n"]) + text + chance.choice(["", ending, 2 * ending])


def twin(lines: list[Line]) -> Expected:
    """Line by line: an image with itself is left out, of a pair of images its first line counts."""
    first: dict[frozenset[int], Line] = {}
    itself = repeated = moved = 0
    error = ""
    if not lines:
        error = "no pairs"
    elif lines[0].fold and len({line.fold for line in lines}) < 2:
        error = "one fold only"
    for line in lines:
        if line.rows[0] == line.rows[1]:
            itself += 1
            continue
        before = first.setdefault(frozenset(line.rows), line)
        if before is not line:
            repeated += 1
            moved += before.fold != line.fold
            if before.same != line.same:
                error = error or "once labelled same and once different"
    kept = list(first.values())
    kinds = {line.same for line in kept}
    if len(kinds) < 2:
        error = error or "verification needs both kinds"
    if kept and kept[0].fold and not error:
        for fold in {line.fold for line in kept}:
            for kind in kinds:  # all of a kind in one fold: the others can choose no threshold
                if all(line.fold == fold for line in kept if line.same == kind):
                    error = "a threshold is chosen on the other folds"
    return Expected(
        [line.rows for line in kept],
        [line.same for line in kept],
        [line.fold for line in kept],
        itself,
        repeated,
        moved,
        error,
    )


def accuracy(score: np.ndarray, same: np.ndarray, fold: np.ndarray) -> float:
    """Mean over folds of the accuracy at the threshold that is best on the others, by trying each."""
    found = []
    for name in sorted(set(fold.tolist())):
        others = fold != name
        falling = sorted(set(score[others].tolist()), reverse=True)
        right = [int((~same[others]).sum())]
        right += [int(((score[others] >= value) == same[others]).sum()) for value in falling]
        best = [k for k, count in enumerate(right) if count == max(right)]
        cut = best[len(best) // 2]
        threshold = np.inf if cut == 0 else falling[cut - 1]
        if 0 < cut < len(falling):
            threshold = (falling[cut - 1] + falling[cut]) / 2
        found.append(float(((score[fold == name] >= threshold) == same[fold == name]).mean()))
    return float(np.mean(found))


def check(lines: list[Line], text: str, table: EmbeddingTable, folder: Path) -> str:
    """What is wrong with the reading of a file, "" where nothing is."""
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8", newline="")
    expected = twin(lines)
    try:
        found = list_pairs(read_pairs(path), table, folder)
    except DataError as error:
        if "\n" in str(error).strip():
            return f"an error of several lines: {error}"
        return "" if expected.error and expected.error in str(error) else f"refused: {error}"
    if expected.error:
        return f"not refused: {expected.error}"
    rows = list(zip(found.rows_a.tolist(), found.rows_b.tolist(), strict=True))
    if (rows, found.pairs.same.tolist()) != (expected.rows, expected.same):
        return f"other pairs: {rows}"
    notes = " ".join(found.notes)
    for count, words in (
        (expected.itself, "hold an image with itself"),
        (expected.repeated, "repeat one before"),
        (expected.moved, "of them in another fold"),
    ):
        if (f"{count} " in notes and words in notes) != bool(count):
            return f"{count} {words}: {notes!r}"
    fold = found.pairs.fold
    if (fold is not None) != bool(expected.folds and expected.folds[0]):
        return "folds lost"
    number = dict(zip(expected.folds, fold.tolist(), strict=True)) if fold is not None else {}
    if fold is not None and [number[name] for name in expected.folds] != fold.tolist():
        return "folds mixed up"
    return score(found.rows_a, found.rows_b, np.array(expected.same, bool), fold, table)


def score(
    rows_a: np.ndarray, rows_b: np.ndarray, same: np.ndarray, fold: np.ndarray | None, table: EmbeddingTable
) -> str:
    """What is wrong with the figures of the pairs, "" where nothing is."""
    cosine = pair_scores(table.embeddings, rows_a, rows_b)
    if min(same.sum(), (~same).sum()) < 2:
        return ""
    verified = verify_pairs(cosine, same, fold=fold, fars=(0.5,))
    genuine, impostor = cosine[same], cosine[~same]
    area = ((genuine[:, None] > impostor) + (genuine[:, None] == impostor) / 2).mean()
    if abs(verified.auc - area) > 1e-12:
        return f"AUC {verified.auc}, not {area}"
    assert verified.accuracy is not None
    wanted = accuracy(cosine, same, np.asarray(verified.accuracy.fold))
    return "" if abs(verified.accuracy.mean - wanted) < 1e-12 else f"{verified.accuracy.mean}, not {wanted}"


def main() -> None:
    """Run the campaign; status 1 where a file is read otherwise than by the twin."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began, wrong, seen = time.monotonic(), 0, Counter[str]()
    table = table_of(given.seed)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for case in range(given.cases):
            chance = random.Random(given.seed * 1_000_003 + case)
            lines = draw_lines(chance, table)
            text = written(chance, lines)
            seen[twin(lines).error or "read"] += 1
            if what := check(lines, text, table, Path(folder)):
                wrong += 1
                print(f"case {case}: {what}\n{text[:2000]}", flush=True)
    print(f"{given.cases:,} cases, {time.monotonic() - began:.0f} s; {wrong} wrong; {dict(seen)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
