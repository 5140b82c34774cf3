"""`facemetric demo`: the whole story on drawn faces, with the commands that tell it again on a folder of yours."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

from facemetric.commands.eval import evaluate
from facemetric.config import DemoConfig, check_least
from facemetric.data.drawn.draw import draw_faces
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.errors import ConfigError
from facemetric.report.figures import evaluation_text
from facemetric.report.record import Evaluation
from facemetric.training.finetune import finetune
from facemetric.training.pretrain import pretrain

SIZE = 64  # pixels: small enough for two cores, large enough to see brows
TEST_SHARE = 0.2
PAIRS_A_FOLD = 300  # of each kind, as LFW has


def run_demo(config: DemoConfig) -> Evaluation:
    """Draw faces, pretrain, finetune, eval on identities never seen; prints the three commands at the end."""
    check_least(config, {"identities": 20, "images": 2, "epochs": 1, "seed": 0})
    out = config.out
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} is not empty; name another --out, or remove it")
    began = time.time()
    train, test = draw_sets(config)
    pairs = draw_test_pairs(test, out / "pairs.csv", config.seed)
    common = {"seed": config.seed, "device": config.device}
    commands: list[str] = []

    def run(name: str, function: Any, data: Path | None, **options: Any) -> Any:
        commands.append(command_line(name, data, options))
        print(f"\n$ {commands[-1]}", flush=True)
        return function(**({"data": data} if data else {}), **options)

    run(
        "pretrain",
        pretrain,
        train,
        arch="lcnet_050",
        image_size=SIZE,
        epochs=config.epochs,
        optimizer="adamw",
        lr=3e-3,
        weight_decay=0.05,
        label_smoothing=0.1,
        out=out / "pretrain",
        **common,
    )
    run(
        "finetune",
        finetune,
        train,
        weights=out / "pretrain",
        freeze="backbone",
        out=out / "finetune",
        **common,
    )
    found = run(
        "eval", evaluate, None, weights=out / "finetune", pairs=pairs, out=out / "eval", device=config.device
    )
    print(evaluation_text(found))
    print(f"\nall of it took {time.time() - began:.0f} s; it wrote")
    for path in (train, test, pairs, out / "pretrain", out / "finetune", out / "eval"):
        print(f"  {path}")
    print("the same on a folder of yours (identity/image.jpg in place of the drawn faces):")
    for command in commands:
        print(f"  {command}")
    return found


def draw_sets(config: DemoConfig) -> tuple[Path, Path]:
    """Two folders of drawn faces: people to train on, and other people to test on."""
    train, test = config.out / "faces", config.out / "faces_never_seen"
    draw_faces(
        train,
        identities=config.identities,
        images=config.images,
        size=SIZE,
        seed=config.seed,
        workers=min(8, os.cpu_count() or 1),
    )
    test.mkdir(parents=True)
    folders = sorted(train.iterdir())
    for folder in folders[-max(2, round(TEST_SHARE * len(folders))) :]:
        os.replace(folder, test / folder.name)
    return train, test


def draw_test_pairs(test: Path, file: Path, seed: int) -> Path:
    """A pairs csv over the images of a folder: as many genuine as impostor pairs, folds that share no person."""
    index = read_index(test)
    people, images = len(index.identities), int(index.counts().min())
    folds = min(10, people // 2)
    each = people // folds  # people in the smallest fold
    possible = min(each * images * (images - 1) // 2, each * (each - 1) // 2 * images**2)
    drawn = make_pairs(index.identity, count=2 * folds * min(possible, PAIRS_A_FOLD), folds=folds, seed=seed)
    write_pairs(file, name_pairs(drawn, [f"{test.name}/{index.name(i)}" for i in range(len(index))]))
    return file


def command_line(name: str, data: Path | None, options: dict[str, Any]) -> str:
    """The shell command that runs with these options."""
    tokens = ["facemetric", name] + ([str(data)] if data else [])
    for option, value in options.items():
        tokens += [f"--{option.replace('_', '-')}", str(value)]
    return shlex.join(tokens)
