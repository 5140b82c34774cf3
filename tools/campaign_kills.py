"""Kills trainings at random moments, resumes them, and compares the bits with runs that were left alone.

    python tools/campaign_kills.py --kills 30 --seed 0

Six trainings on drawn faces, both stages, with reading processes, moving average, margin head, random erasing,
micro-batches and cross-batch memory. Each is run once untouched, then again and again with `--resume`, ended by
SIGKILL (four times of five), SIGTERM or SIGINT at random moments, the start of the program and the writing of
files among them, until it came to its end; then the next begins, until the training had its share of the signals.
Right is: the weights, their figures and thresholds, the checkpoint and the log's events are those of the untouched
run, no line of the log is cut, nothing half written is left, and nothing ended with a traceback.

30 signals (seed 0) met 15 runs on a core shared with others, in 2 minutes: all ended with the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from facemetric import cli
from facemetric.data.drawn.draw import draw_faces
from facemetric.training import finetune, pretrain  # noqa: F401 (before the forks, that each starts at once)
from facemetric.training.run.folder import read_log

SHARED = ["--batch-size", "16", "--device", "cpu", "--checkpoint-minutes", "0.002"]
ONE = ["pretrain", "FACES", "--arch", "test_resnet", "--image-size", "32", "--epochs", "4", *SHARED]
TWO = ["finetune", "FACES", "--weights", "START", "--epochs", "4", "--lr", "0.01", *SHARED]
STAGES = {
    "one": [*ONE, "--workers", "0"],
    "one, workers, ema, arcface, erasing": [
        *ONE,
        *(
            "--workers",
            "2",
            "--ema",
            "0.9",
            "--head",
            "arcface",
            "--random-erasing",
            "0.5",
            "--drop-path",
            "0.1",
            "--amp",
            "bfloat16",
        ),
    ],
    "two on features": [*TWO, "--workers", "0", "--views", "2"],
    "two on features, memory": [*TWO, "--workers", "1", "--memory", "64", "--miner", "hard"],
    "two on images, micro-batches, memory, ema": [
        *TWO,
        *("--workers", "1", "--freeze", "none", "--microbatch", "6", "--memory", "64", "--ema", "0.9"),
        *("--amp", "float16"),
    ],
    "two, batch norms": [*TWO, "--workers", "0", "--freeze", "batchnorm", "--miner", "distance-weighted"],
}


def start(words: list[str], said: Path) -> int:
    """Run a command in a forked process, its words kept; the process."""
    child = os.fork()
    if child:
        return child
    status = 3
    # tqdm's own lock is shared by all forks, and one that was killed may have held it.
    tqdm.set_lock(threading.RLock())
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        cli.main(words)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException as error:
        with open(said, "a") as file_:
            file_.write(f"Traceback {error!r}\n")
    finally:
        os._exit(status)


def same(one: Any, other: Any) -> bool:
    """The same bits all the way down."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key != "log")
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def differences(whole: Path, parts: Path) -> list[str]:
    """What of two finished run folders is not the same."""
    found = []
    if not same(*(load_file(run / "best/model.safetensors") for run in (whole, parts))):
        found.append("weights")
    if not same(*(torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, parts))):
        found.append("checkpoint")
    configs = [json.loads((run / "best/config.json").read_text())["facemetric"] for run in (whole, parts)]
    if configs[0]["metrics"] != configs[1]["metrics"] or configs[0]["thresholds"] != configs[1]["thresholds"]:
        found.append("figures or thresholds of the weights")
    logs = [read_log(run / "log.jsonl") for run in (whole, parts)]
    events = [[(e["event"], e["step"]) for e in log if e["event"] != "train"] for log in logs]
    if events[0] != events[1]:
        found.append(f"events of the log {events}")
    if len(logs[1]) != len((parts / "log.jsonl").read_text().splitlines()):
        found.append("a line of the log")
    if logs[1][-2 if logs[1][-1]["event"] == "finished" else -1]["step"] not in (0, logs[0][-1]["step"]):
        found.append("the end of the log")
    left = {path.name for path in parts.iterdir()} & {"best.new", "best.old", "checkpoint.new"}
    return found + sorted(left)


def kill_often(name: str, words: list[str], folder: Path, kills: int, chance: random.Random) -> list[str]:
    """Run once untouched and once with kills; what went wrong."""
    said = folder / "said.txt"
    began = time.monotonic()
    if os.waitpid(start([*words, "--out", str(folder / "whole")], said), 0)[1]:
        return [f"did not run: {said.read_text()[-500:]}"]
    length = time.monotonic() - began
    wrong: list[str] = []
    met = runs = 0
    while met < kills and not wrong:  # a run that came to its end is compared, and the next begins
        runs += 1
        out, status = folder / f"parts{runs}", -1
        while status != 0 and not wrong:
            resume = ["--resume"] if (out / "config.toml").exists() else []
            child = start([*words, "--out", str(out), *resume], said)
            ended = wait(child, chance.uniform(0, 0.7 * length) if met < kills else 600)
            if ended is None:
                met += 1
                soft = signal.SIGTERM if chance.random() < 0.5 else signal.SIGINT
                os.kill(child, soft if chance.random() < 0.2 else signal.SIGKILL)
                ended = os.waitpid(child, 0)[1]
            status = os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else os.WTERMSIG(ended)
            if os.WIFEXITED(ended) and status not in (0, 2):
                wrong.append(f"status {status}: {said.read_text()[-500:]}")
        wrong += differences(folder / "whole", out) if not wrong else []
    if "Traceback" in said.read_text():
        wrong.append("a traceback")
    print(f"{name}: {met} signals in {runs} runs of {length:.1f} s; {wrong or 'the same bits'}", flush=True)
    return wrong


def wait(child: int, seconds: float) -> int | None:
    """The status of a process that ended within so many seconds; None where it did not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    return None


def main() -> None:
    """Run the campaign; status 1 where anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    faces = draw_faces(folder / "faces", identities=16, images=6, size=32, seed=1, workers=1, progress=False)
    start_ = folder / "start"
    os.waitpid(start(["pretrain", str(faces), *ONE[2:], "--out", str(start_)], folder / "start.txt"), 0)
    chance = random.Random(given.seed)
    each = [given.kills // len(STAGES) + (i < given.kills % len(STAGES)) for i in range(len(STAGES))]
    wrong = []
    for (name, words), kills in zip(STAGES.items(), each, strict=True):
        place = folder / name.replace(" ", "_").replace(",", "")
        place.mkdir()
        line = [{"FACES": str(faces), "START": str(start_)}.get(word, word) for word in words]
        wrong += kill_often(name, line, place, kills, chance)
    if not wrong:
        shutil.rmtree(folder)
    sys.exit(f"{len(wrong)} faults, see {folder}" if wrong else 0)


if __name__ == "__main__":
    main()
