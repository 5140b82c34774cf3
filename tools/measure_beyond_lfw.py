"""What LFW does not show of weights: who passes for whom by origin, age and sex; worse pictures, turned heads.

    python tools/measure_beyond_lfw.py WEIGHTS --data DATA [--flip] [--far 1e-3] [--hardest hardest.png]

DATA holds `fairface112.tar` (images named `test_AGE_ORIGIN_NUMBER`, which no training of the weights saw),
`utkface112.tar` (`AGE_SEX_ORIGIN_TIME`, which training saw without names) and LFW as in measure_weights.py. Prints
Markdown tables for the weights' card, and draws the hardest pairs. LFW's View 2 is read here too: run this for weights
that are chosen already.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.data.pair_images import resolve
from facemetric.data.pairs import read_pairs
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.intervals.draws import person_weights
from facemetric.evaluation.intervals.records import Interval, percentiles
from facemetric.evaluation.thresholds import stored_threshold
from facemetric.evaluation.verification import Verification, pair_scores, verify_pairs
from facemetric.faces.quality import turn_of
from facemetric.model.embedder import Embedder
from facemetric.model.weights.folder import find_weights
from facemetric.model.weights.save_load import load_embedder

HELD = re.compile(r"test_(?P<age>[^_]+)_(?P<origin>\D+)_\d+\.")
SEEN = re.compile(r"/(?P<age>\d+)_(?P<sex>[01])_(?P<origin>[0-4])_")  # UTKFace
SEXES = {"0": "men and boys", "1": "women and girls"}
ORIGINS = {"0": "White", "1": "Black", "2": "Asian", "3": "Indian", "4": "others"}
OLD = re.compile(r"than_70_")  # of "more than 70", which the names write as more_than_70
AGES = {"0-2": "0 to 9", "3-9": "0 to 9", "40-49": "40 to 59", "50-59": "40 to 59", "60-69": "60 and older"}
DRAWS = 1000
TILE = 112
LISTED = 12  # hardest pairs of each kind
PAIRS = 1800  # of View 2 for worse pictures: its first three folds


class LfwPairs(NamedTuple):
    """View 2's pairs: the images by path, the two rows of each pair among them, and whether they show one person."""

    images: list[Image.Image]
    rows_a: np.ndarray
    rows_b: np.ndarray
    same: np.ndarray


def smaller(side: int) -> Callable[[Image.Image], Image.Image]:
    """Down to `side` pixels and up again."""
    return lambda image: image.resize((side, side), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BICUBIC
    )


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Through a JPEG of this quality."""

    def through(image: Image.Image) -> Image.Image:
        kept = io.BytesIO()
        image.save(kept, "JPEG", quality=quality)
        return Image.open(io.BytesIO(kept.getvalue())).convert("RGB")

    return through


WORSE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda image: image,
    "48 pixels, up again": smaller(48),
    "32 pixels, up again": smaller(32),
    "24 pixels, up again": smaller(24),
    "Gaussian blur of 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "JPEG of quality 20": jpeg(20),
    "a quarter as bright": lambda image: image.point(lambda value: value // 4),
    "lower half black": lambda image: half_black(image),
}


def half_black(image: Image.Image) -> Image.Image:
    """A face behind a mask, as it were: from below the tip of the nose all is black."""
    image = image.copy()
    image.paste((0, 0, 0), (0, 74 * image.height // TILE, image.width, image.height))
    return image


def group_rates(
    score_NN: np.ndarray, groups: np.ndarray, threshold: float
) -> Iterator[tuple[str, int, Interval]]:
    """(group, people, FAR among its own people) of one image a person, the interval over people."""
    for name in sorted(set(groups.tolist())):
        rows = np.flatnonzero(groups == name)
        passes = (score_NN[np.ix_(rows, rows)] >= threshold).astype(np.float64)
        np.fill_diagonal(passes, 0)
        count = len(rows)
        value = passes.sum() / (count * (count - 1))
        drawn = []
        for w_BN in person_weights(count, DRAWS, 0):
            both = w_BN.sum(1) ** 2 - (w_BN**2).sum(1)
            drawn.append(((w_BN @ passes) * w_BN).sum(1) / both)
        yield name, count, percentiles(value, np.concatenate(drawn))


def age_group(age: str) -> str:
    """Wider groups where FairFace's own hold few."""
    return "60 and older" if "70" in age else AGES.get(age, age.replace("-", " to "))


def by_group(embedder: Embedder, data: Path, flip: bool, threshold: float) -> str:
    """FAR by origin and by age, at the threshold, over pairs of two people of one group."""
    index = read_index([str(data / "fairface112.tar")], loose=True)
    held = [i for i in range(len(index)) if "/test_" in index.name(i)]
    table = embed_index(embedder, index.select(np.array(held)), flip=flip, progress="FairFace").table
    names = [OLD.sub("70_", path.replace("more_", "more")) for path in table.paths.tolist()]
    found = [match for match in map(HELD.search, names) if match]
    if len(found) != len(table):
        raise SystemExit(f"{len(table) - len(found)} names of FairFace's test part were not understood")
    ages = np.array([age_group(match["age"]) for match in found])
    origins = np.array([m["origin"].replace("_", " ") for m in found])
    return group_table("FairFace, one image a person", table.embeddings, [origins, ages], threshold)


def by_sex(embedder: Embedder, data: Path, flip: bool, threshold: float) -> str:
    """FAR by sex, and by sex and origin, over pairs of two images of UTKFace, which is taken to hold a person once."""
    index = read_index([str(data / "utkface112.tar")], loose=True)
    table = embed_index(embedder, index, flip=flip, progress="UTKFace").table
    found = [match for match in map(SEEN.search, table.paths.tolist()) if match]
    rows = [row for row, path in enumerate(table.paths.tolist()) if SEEN.search(path)]
    sexes = np.array([SEXES[match["sex"]] for match in found])
    both = np.array([f"{ORIGINS[match['origin']]}, {SEXES[match['sex']]}" for match in found])
    head = f"UTKFace, {len(table) - len(rows)} of {len(table)} names not understood"
    return group_table(head, table.embeddings[rows], [sexes, both], threshold)


def group_table(head: str, emb_ND: np.ndarray, kinds: list[np.ndarray], threshold: float) -> str:
    """FAR among all, then among the groups of each kind, as a Markdown table."""
    score_NN = emb_ND @ emb_ND.T
    lines = [f"| {head} | people | FAR among them [95 % over people] |", "|---|---|---|"]
    for groups in [np.array(["all"] * len(emb_ND)), *kinds]:
        lines += [
            f"| {name} | {count} | {rate.value:.4f} [{rate.low:.4f}, {rate.high:.4f}] |"
            for name, count, rate in group_rates(score_NN, groups, threshold)
        ]
    return "\n".join(lines)


def read_lfw(data: Path) -> LfwPairs:
    """View 2's pairs with their images, decoded once."""
    pairs = read_pairs(data / "lfw" / "pairs.txt")
    index = read_index([str(data / "lfw112.tar")])
    rows_a, rows_b = resolve(pairs, index)
    used, placed = np.unique(np.concatenate([rows_a, rows_b]), return_inverse=True)
    images = [decode(index.read(int(row))) for row in used]
    return LfwPairs(images, placed[: len(rows_a)], placed[len(rows_a) :], pairs.same)


def embedded(embedder: Embedder, images: list[Image.Image], flip: bool) -> np.ndarray:
    """Unit vectors (N, D) of crops."""
    return np.asarray(embedder.embed(images, flip=flip, faces="off"))


def line(name: str, found: Verification, score: np.ndarray, same: np.ndarray, threshold: float) -> str:
    """A row of the table of LFW's pairs."""
    passes = score >= threshold
    return f"| {name} | {len(score):,} | {found.eer:.3f} | {passes[same].mean():.3f} | {passes[~same].mean():.4f} |"


HEAD = "| LFW View 2 | pairs | EER | TAR at the stored threshold | FAR there |\n|---|---|---|---|---|"


def worse_pictures(
    embedder: Embedder, lfw: LfwPairs, clean_ND: np.ndarray, flip: bool, threshold: float
) -> str:
    """The second picture of each of the first pairs made worse, the first as it is."""
    rows_a, same = lfw.rows_a[:PAIRS], lfw.same[:PAIRS]
    used, rows_b = np.unique(lfw.rows_b[:PAIRS], return_inverse=True)
    lines = [HEAD]
    for name, spoil in WORSE.items():
        other_ND = embedded(embedder, [spoil(lfw.images[row]) for row in used], flip)
        score = (clean_ND[rows_a] * other_ND[rows_b]).sum(1)
        lines.append(line(f"second picture: {name}", verify_pairs(score, same), score, same, threshold))
    return "\n".join(lines)


def turned_heads(lfw: LfwPairs, score: np.ndarray, threshold: float) -> str:
    """Pairs by how far the more turned of the two heads is turned, as the detector's landmarks say."""
    from facemetric.faces.crop_look import crop_looks

    looks = [
        look
        for start in range(0, len(lfw.images), 256)
        for look in crop_looks(lfw.images[start : start + 256])
    ]
    turn = np.array([turn_of(look.landmarks) for look in looks])
    more = np.maximum(turn[lfw.rows_a], turn[lfw.rows_b])
    edges = [0, 0.2, 0.4, 0.6, 1.01]
    lines = [HEAD]
    for low, high in pairwise(edges):
        rows = (more >= low) & (more < high)
        if lfw.same[rows].any() and not lfw.same[rows].all():
            found = verify_pairs(score[rows], lfw.same[rows])
            name = f"nose off the middle by {low:g} to {min(high, 1):g}"
            lines.append(line(name, found, score[rows], lfw.same[rows], threshold))
    return "\n".join(lines)


def hardest(lfw: LfwPairs, score: np.ndarray, path: Path) -> str:
    """The genuine pairs of lowest and the impostors of highest score, as one picture; says their scores."""
    genuine = [i for i in np.argsort(score) if lfw.same[i]][:LISTED]
    impostor = [i for i in np.argsort(-score) if not lfw.same[i]][:LISTED]
    sheet = Image.new("RGB", (4 * 2 * TILE + 30, 2 * LISTED // 4 * (TILE + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, i in enumerate([*genuine, *impostor]):
        x, y = place % 4 * (2 * TILE + 10), place // 4 * (TILE + 16)
        for k, row in enumerate((lfw.rows_a[i], lfw.rows_b[i])):
            sheet.paste(lfw.images[row].resize((TILE, TILE)), (x + k * TILE, y))
        draw.text((x, y + TILE + 2), f"{'same' if lfw.same[i] else 'different'} {score[i]:.3f}", "black")
    sheet.save(path)
    low, high = score[genuine], score[impostor]
    return (
        f"hardest pairs in {path}: genuine from {low.min():.3f} to {low.max():.3f}, "
        f"impostors from {high.max():.3f} to {high.min():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--flip", action="store_true", help="average with the mirror image's embedding")
    parser.add_argument("--far", type=float, default=1e-3, help="of the stored threshold")
    parser.add_argument("--hardest", type=Path, help="a picture of the hardest pairs")
    options = parser.parse_args()
    folder = find_weights(options.weights)
    threshold = stored_threshold(folder, options.far).threshold.cosine
    embedder = load_embedder(folder)
    print(by_group(embedder, options.data, options.flip, threshold), "\n")
    print(by_sex(embedder, options.data, options.flip, threshold), "\n")
    lfw = read_lfw(options.data)
    clean_ND = embedded(embedder, lfw.images, options.flip)
    score = np.asarray(pair_scores(clean_ND, lfw.rows_a, lfw.rows_b))
    print(worse_pictures(embedder, lfw, clean_ND, options.flip, threshold), "\n")
    print(turned_heads(lfw, score, threshold), "\n")
    if options.hardest:
        print(hardest(lfw, score, options.hardest))


if __name__ == "__main__":
    main()
