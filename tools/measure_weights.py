"""Measures weights on real faces, writes the figures into their config.json, and prints the table of their card.

    python tools/measure_weights.py FOLDER --data DATA [--flip] [--ship weights/NAME]
    python tools/measure_weights.py FOLDER --data DATA --answers

DATA holds `lfw112.tar`, `lfw/pairs.txt`, `lfw/pairsDevTest.txt`, `orl.tar` and the training tars. With --ship the
weights are first copied there in float16, with the hashes of their training images, and the copy is what is measured.
LFW's View 2 (`pairs.txt`) is for reporting: run this once for weights that were chosen without it. The validation
people are those of `configs/shipped_validation.txt`, whom no run trained on.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facemetric import evaluate
from facemetric.config import StageConfig
from facemetric.data.images import decode
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.pair_images import resolve
from facemetric.data.pairs import read_pairs
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.answers import choose_answers, store_answers
from facemetric.evaluation.audit.seen import FILE as TRAINING_IMAGES
from facemetric.evaluation.audit.seen import read_training_images
from facemetric.evaluation.curves import OperatingPoint
from facemetric.evaluation.embed import embed_index, usual_size
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.thresholds import KEY, Stored, choose_thresholds, store_thresholds, supported_fars
from facemetric.evaluation.verification import pair_scores, verify_pairs
from facemetric.files import write_text_whole
from facemetric.model.embedder import Embedder, in_pieces
from facemetric.model.weights.folder import CONFIG, FACES, find_weights, read_config, without_folders
from facemetric.model.weights.save_load import load_embedder, save_weights
from facemetric.training.split import read_split
from facemetric.training.validation import CHOSEN_ON, FARS

CONFIGS = Path(__file__).parent.parent / "configs"
MARK = "<!-- measured -->"  # around the table in a card, which is then replaced
DARK = 0.1  # share of the pairs that count as dark: those whose darker picture is darkest


def on_lfw(weights: Path, data: Path, flip: bool) -> dict[str, Any]:
    """LFW's View 2 and DevTest, and the nearest neighbours of all its images."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        found = evaluate(
            weights,
            pairs=data / "lfw" / "pairs.txt",
            data=[data / "lfw112.tar"],
            flip=flip,
            report=False,
            out=out,
        )
        verification = found.verification
        assert verification is not None
        assert verification.accuracy is not None
        figures["lfw_accuracy"] = verification.accuracy.mean
        figures["lfw_accuracy_deviation"] = verification.accuracy.deviation_sample
        figures |= {"lfw_auc": verification.auc, "lfw_eer": verification.eer}
        figures |= true_rates("lfw", verification.points)
        for name, interval in found.intervals.items():
            figures[f"lfw_{name}_95"] = [interval.low, interval.high]
        assert found.neighbours is not None
        figures["lfw_knn_accuracy"] = found.neighbours.knn[1]
        dev = evaluate(
            embeddings=out / "embeddings.npz",
            pairs=data / "lfw" / "pairsDevTest.txt",
            report=False,
            out=out / "dev",
        )
        assert dev.verification is not None
        assert dev.verification.accuracy is not None
        figures["devtest_accuracy"] = dev.verification.accuracy.mean
        figures["devtest_eer"] = dev.verification.eer
        return figures | dark_pairs(data, out)


def true_rates(where: str, points: Sequence[OperatingPoint]) -> dict[str, float]:
    """TAR at the points that the impostors are enough for."""
    return {f"{where}_tar_at_far_{p.wanted:g}": p.true_rate for p in points if not math.isnan(p.true_rate)}


def dark_pairs(data: Path, out: Path) -> dict[str, float]:
    """The darkest tenth of View 2's pairs beside the others: accuracy at the equal-error threshold of all."""
    pairs = read_pairs(data / "lfw" / "pairs.txt")
    table = EmbeddingTable.load(out / "embeddings.npz")
    rows_a, rows_b = resolve(pairs, table)
    index = read_index([str(data / "lfw112.tar")])
    used = np.unique(np.concatenate([rows_a, rows_b]))
    luma = np.full(len(table), np.inf)
    for row in used.tolist():
        image = index.find(str(table.paths[row]))
        assert image is not None
        luma[row] = np.asarray(decode(index.read(image)).convert("L")).mean()
    darker = np.minimum(luma[rows_a], luma[rows_b])
    dark = darker <= np.quantile(darker, DARK)
    score = pair_scores(table.embeddings, rows_a, rows_b)
    right = (score >= verify_pairs(score, pairs.same).eer_threshold) == pairs.same
    return {
        "lfw_dark_pairs_accuracy": float(right[dark].mean()),
        "lfw_other_pairs_accuracy": float(right[~dark].mean()),
        "lfw_dark_pairs_luma": float(np.quantile(darker, DARK)),
    }


def validation_images(data: Path) -> ImageIndex:
    """The images of the validation identities."""
    config = StageConfig(
        tuple(f"{name}={data / name}112.tar" for name in ("fiw", "pins", "celeba")),
        val_identities=CONFIGS / "shipped_validation.txt",
        merge=CONFIGS / "shipped_merge.csv",
        leave_out=CONFIGS / "shipped_leave_out.txt",
    )
    val = read_split(config).val
    assert val is not None
    return val


def keep_answers(folder: Path, embedder: Embedder, val: ImageIndex) -> None:
    """Store the answers of `verify` (thresholds of FRRs, the probability) from the validation images; and the
    thresholds of FARs too, where the weights hold none of these images."""
    kept = read_config(folder)["facemetric"].get(KEY, {}).values()
    of_these = [record for record in kept if record["data_fingerprint"] == val.fingerprint]
    flip = bool(of_these and of_these[0]["flip"])
    table = embed_index(embedder, val, flip=flip, progress="answers").table
    if not of_these:
        fars = supported_fars(table.identities, FARS)
        found = choose_thresholds(table.embeddings, table.identities, fars)
        size = usual_size(val)
        store_thresholds(folder, [Stored(t, flip, CHOSEN_ON, val.fingerprint, size) for t in found])
    answers = choose_answers(table.embeddings, table.identities, flip=flip, data_fingerprint=val.fingerprint)
    store_answers(folder, answers)


def on_validation(embedder: Embedder, val: ImageIndex, flip: bool) -> dict[str, float]:
    """All pairs of the validation identities, and how often relatives pass for one person."""
    table = embed_index(embedder, val, flip=flip, progress="validation").table
    found = verify_all_pairs(table.embeddings, table.identities, fars=(1e-2, 1e-3, 1e-4))
    figures = true_rates("val", found.points) | {"val_eer": found.eer, "val_auc": found.auc}
    return figures | {"val_relatives_far_at_far_0.01": relatives(table, found.points[0])}


def relatives(table: EmbeddingTable, point: OperatingPoint) -> float:
    """Share of pairs of two members of one family that pass at a threshold for strangers."""
    families: dict[str, list[int]] = {}
    for row, name in enumerate(table.identities.tolist()):
        if family := re.match(r"fiw/(F\d+)_", name):
            families.setdefault(family[1], []).append(row)
    pairs = np.array(
        [
            pair
            for rows in families.values()
            for pair in combinations(rows, 2)
            if table.identities[pair[0]] != table.identities[pair[1]]
        ]
    )
    score = (table.embeddings[pairs[:, 0]] * table.embeddings[pairs[:, 1]]).sum(axis=1)
    return float((score >= point.threshold).mean())


def images_per_second(embedder: Embedder, flip: bool, rounds: int = 7) -> float:
    """The network's own speed on all cores, 256 images as `eval` sees them: the median of some rounds."""
    height, width = embedder.preprocess.size
    images = torch.randn(256, 3, height, width).to(memory_format=torch.channels_last)
    embedder.to(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for _ in range(rounds):
            began = time.perf_counter()
            in_pieces(embedder, images)
            if flip:
                in_pieces(embedder, images.flip(3))
            times.append(time.perf_counter() - began)
    return len(images) / statistics.median(times)


def card_table(figures: dict[str, Any]) -> str:
    """The measured figures as the lines of a Markdown table."""

    def between(name: str) -> str:
        low, high = figures[f"{name}_95"]
        return f" [{low:.3f}, {high:.3f}]"

    def tar(name: str) -> str:
        if name not in figures:
            return "too few impostors"
        return f"{figures[name]:.3f}{between(name) if f'{name}_95' in figures else ''}"

    rows = [
        ("LFW View 2, accuracy, mean of 10 folds (sample deviation over folds)",
         f"{figures['lfw_accuracy']:.2%} ({figures['lfw_accuracy_deviation']:.2%})"),
        ("LFW, TAR @ FAR = 1e-1 [95 % over people]", tar("lfw_tar_at_far_0.1")),
        ("LFW, TAR @ FAR = 1e-2", tar("lfw_tar_at_far_0.01")),
        ("LFW, TAR @ FAR = 1e-3 (3 impostors: read the interval)", tar("lfw_tar_at_far_0.001")),
        ("LFW, EER", f"{figures['lfw_eer']:.3f}{between('lfw_eer')}"),
        ("LFW, AUC", f"{figures['lfw_auc']:.4f}{between('lfw_auc')}"),
        ("LFW, nearest neighbour of all 13,233 images", f"{figures['lfw_knn_accuracy']:.3f}"),
        ("LFW View 1, DevTest, accuracy (folds drawn)", f"{figures['devtest_accuracy']:.3f}"),
        ("validation people, all pairs: TAR @ FAR = 1e-2, 1e-3, 1e-4; EER",
         ", ".join(tar(f"val_tar_at_far_{far}") for far in ("0.01", "0.001", "0.0001"))
         + f"; {figures['val_eer']:.3f}"),
        ("ORL, 40 people, not aligned: nearest neighbour", f"{figures['orl_knn_accuracy']:.3f}"),
        ("two members of a family taken for one person, where FAR = 1e-2 for all pairs",
         f"{figures['val_relatives_far_at_far_0.01']:.3f}"),
        ("darkest tenth of LFW's pairs, accuracy; the others",
         f"{figures['lfw_dark_pairs_accuracy']:.3f}; {figures['lfw_other_pairs_accuracy']:.3f}"),
        ("images a second, network only, two cores; with the mirror image",
         f"{figures['images_per_second']:.0f}; {figures['images_per_second_flip']:.0f}"),
    ]  # fmt: skip
    lines = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return f"| measured | |\n|---|---|\n{lines}"


def ship(
    source: Path, target: Path, *, size: int = 0, crop: tuple[float, float, float, float] | None = None
) -> None:
    """Write weights in float16 in the place of `target`, with the hashes of their training images; no paths of this
    machine go along, and thresholds stay behind. `size` and `crop` change the picture that the network sees."""
    ours = read_config(source)["facemetric"]
    hashes = read_training_images(source)
    embedder = load_embedder(source)
    pre = embedder.preprocess
    side = size or pre.size[0]
    embedder.preprocess = replace(pre, size=(side, side), crop=crop or pre.crop)
    embedder.pictures = FACES  # also of a run that began without weights
    save_weights(
        target,
        embedder,
        provenance=without_folders(ours["provenance"]),
        metrics=ours["metrics"],
        half=True,
    )
    if hashes is not None:
        shutil.copyfile(source / TRAINING_IMAGES, target / TRAINING_IMAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--flip", action="store_true", help="average with the mirror image's embedding")
    parser.add_argument("--ship", type=Path, help="folder to write the weights to, in float16")
    parser.add_argument(
        "--size", type=int, help="with --ship: another side of the picture, pixels; calibrate then"
    )
    parser.add_argument(
        "--crop", type=float, nargs=4, help="with --ship: another crop, as in training; calibrate then"
    )
    parser.add_argument(
        "--answers", action="store_true", help="only what verify answers by, from the validation people"
    )
    parser.add_argument("--speed", action="store_true", help="only the speed: for a machine that is quiet")
    options = parser.parse_args()
    folder = find_weights(options.weights)
    if options.answers:
        keep_answers(folder, load_embedder(folder), validation_images(options.data))
        return
    card, text = (options.ship or folder) / "README.md", ""
    if card.is_file():
        text = card.read_text()
    thresholds: dict[str, Any] = {}
    if options.ship:  # replaces the whole folder
        if not (options.size or options.crop):
            # float16 moves a cosine by less than their intervals.
            thresholds = read_config(folder)["facemetric"].get("thresholds", {})
        ship(folder, options.ship, size=options.size, crop=options.crop and tuple(options.crop))
        if text:
            write_text_whole(card, text)  # should measuring fail
        folder = options.ship
    embedder = load_embedder(folder)
    figures: dict[str, Any] = {
        "images_per_second": images_per_second(embedder, False),
        "images_per_second_flip": images_per_second(embedder, True),
    }
    if not options.speed:
        figures["flip"] = options.flip  # of all but the speed
        figures |= on_lfw(folder, options.data, options.flip)
        val = validation_images(options.data)
        figures |= on_validation(embedder, val, options.flip)
        with tempfile.TemporaryDirectory() as out:
            orl = evaluate(
                folder, data=[options.data / "orl.tar"], flip=options.flip, report=False, out=out
            ).neighbours
        assert orl is not None
        figures["orl_knn_accuracy"] = orl.knn[1]
    config = read_config(folder)
    config["facemetric"]["metrics"] = config["facemetric"].get("metrics", {}) | figures
    if thresholds:
        config["facemetric"]["thresholds"] = thresholds
    write_text_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    if not options.speed:
        keep_answers(folder, embedder, val)
    table = card_table(config["facemetric"]["metrics"])
    if text:
        before, _, after = re.split(f"({MARK}\n.*?{MARK}\n)", text, maxsplit=1, flags=re.DOTALL)
        write_text_whole(card, f"{before}{MARK}\n{table}{MARK}\n{after}")
    print(table)


if __name__ == "__main__":
    main()
