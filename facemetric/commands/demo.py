"""`facemetric demo`: the whole story on drawn faces, with the commands that tell it again on a folder of yours."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from facemetric.commands.evaluating.eval import evaluate
from facemetric.config import DemoConfig, check_least, config_dict, differences, require
from facemetric.data.drawn.draw import draw_faces
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.errors import ConfigError
from facemetric.files import write_text_whole
from facemetric.machine import say
from facemetric.report.figures import evaluation_text
from facemetric.report.record import Evaluation
from facemetric.training.finetune import finetune
from facemetric.training.pretrain import pretrain
from facemetric.training.run.folder import CHECKPOINT, has_checkpoint

SIZE = 64  # pixels: small enough for two cores, large enough to see brows
TEST_SHARE = 0.2
TRAIN, TEST, RECORD = "faces", "faces_never_seen", "demo.json"
CHANCE, GOOD = 0.6, 0.8  # AUC on people never seen: below the first, nothing worth a name was learned
RESUMABLE_OPTIONS = ("out", "device")  # a demo goes on with another, or with `out` written in another way
PAIRS_A_FOLD = 300  # of each kind, as LFW has


def run_demo(config: DemoConfig) -> Evaluation:
    """Draw faces, pretrain, finetune, eval on identities never seen; says at the end what came of it, and the three
    commands. With `resume` it goes on where it was stopped.

    Raises ConfigError where the folder holds something else."""
    check_least(config, {"identities": 20, "images": 2, "epochs": 1, "seed": 0})
    out = config.out
    claim_folder(config)
    began = time.monotonic()
    train, test, pairs = draw_data(config)
    common = {"seed": config.seed, "device": config.device}
    commands: list[str] = []

    def run(name: str, function: Callable[..., Any], data: Path | None, **options: Any) -> Any:
        commands.append(command_line(name, data, options))
        say(f"\n$ {commands[-1]}")
        if has_checkpoint(options["out"] / CHECKPOINT):
            options["resume"] = True
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
    found: Evaluation = run(
        "eval", evaluate, None, weights=out / "finetune", pairs=pairs, out=out / "eval", device=config.device
    )
    say(evaluation_text(found))
    assert found.verification is not None
    say(f"\n{verdict(found.verification.auc)}", f"all of it took {time.monotonic() - began:.0f} s; it wrote")
    say(*(f"  {path}" for path in (train, test, pairs, out / "pretrain", out / "finetune", out / "eval")))
    say("the same on a folder of yours (identity/image.jpg in place of the drawn faces):")
    say(*(f"  {command}" for command in commands))
    return found


def verdict(auc: float) -> str:
    """What the demo showed, from the AUC on people never seen: 0.5 is chance."""
    if auc < CHANCE:
        return (
            f"verdict: the model did NOT learn to tell people apart (AUC {auc:.3f}, chance is 0.5): the lines of the "
            "training above say where it failed; try another --seed, or more --epochs"
        )
    if auc < GOOD:
        return (
            f"verdict: the model tells people whom it never saw apart, but not well (AUC {auc:.3f}, chance is 0.5); "
            "more --identities, --images or --epochs help"
        )
    return f"verdict: the model tells people whom it never saw apart (AUC {auc:.3f}, chance is 0.5)"


def claim_folder(config: DemoConfig) -> None:
    """Note in the folder what demo it holds. Raises ConfigError where it holds another, or something else."""
    out, options = config.out, config_dict(replace(config, resume=False))
    record = out / RECORD
    if out.exists() and any(out.iterdir()):
        if not record.exists():
            raise ConfigError(f"{out} is not empty; name another --out, or remove it")
        require(config.resume, f"{out} holds a demo; go on with it by --resume, or name another --out")
        before, now = (
            {key: value for key, value in kept.items() if key not in RESUMABLE_OPTIONS}
            for kept in (json.loads(record.read_text()), options)
        )
        other = differences(before, now)
        require(not other, f"{out} holds a demo with other options ({other}); name another --out")
    else:
        require(not config.resume, f"{out} holds no demo to resume; start without --resume")
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(record, json.dumps(options, indent=2) + "\n")


def draw_data(config: DemoConfig) -> tuple[Path, Path, Path]:
    """The two folders of drawn faces and the pairs of the evaluation; drawn once, as the pairs come last."""
    out = config.out
    pairs = out / "pairs.csv"
    if pairs.exists():
        return out / TRAIN, out / TEST, pairs
    for folder in (out / TRAIN, out / TEST):
        shutil.rmtree(folder, ignore_errors=True)
    train, test = draw_sets(config)
    return train, test, draw_test_pairs(test, pairs, config.seed)


def draw_sets(config: DemoConfig) -> tuple[Path, Path]:
    """Two folders of drawn faces: people to train on, and other people to test on."""
    train, test = config.out / TRAIN, config.out / TEST
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
    """A pairs csv over the images of a folder: as many genuine as impostor pairs, folds that share no identity."""
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
