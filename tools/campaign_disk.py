"""Trains on disks that are full at some moment, frees them, resumes, and compares the bits.

    sudo python tools/campaign_disk.py --sizes 8

Both stages write onto a tmpfs (mounting one needs root) too small for them, of sizes spread from nothing to just
below what the run takes, so that each kind of write is the one that fails: the lock, config.toml, the log, the
events, the feature cache, the checkpoint, the weights. Right is: the run ends with status 2 and one line that names
a file and the remedy, and after the disk was made larger the same command, with --resume where it began, ends with
the bits of a run that was never short of space. A read-only disk is the last case.

With --sizes 4, 15 disks met config.toml, the weights, the checkpoint and the folder itself: none ended otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from campaign_kills import ONE, STAGES, differences, start

from facemetric.data.drawn.draw import draw_faces

CHOSEN = ("one", "two on features, memory", "two on images, micro-batches, memory, ema")


def mounted(place: Path, options: str) -> None:
    """Mount a tmpfs, or change one."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def run(words: list[str], said: Path) -> tuple[int, str]:
    """The status of a command, and what it said."""
    said.write_text("")
    status = os.waitpid(start(words, said), 0)[1]
    return (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)), said.read_text()


def on_a_full_disk(
    words: list[str], whole: Path, kib: int, folder: Path, options: str = ""
) -> tuple[str, list[str]]:
    """The line that a run ends with on so small a disk, and what is wrong."""
    place, said = folder / "disk", folder / "said.txt"
    place.mkdir(exist_ok=True)
    mounted(place, options or f"size={kib}k")
    try:
        words = [
            *words,
            "--out",
            str(place / "run"),
            *(["--cache", str(place / "cache")] if "finetune" in words else []),
        ]
        status, text = run(words, said)
        lines = [line for line in text.splitlines() if line.startswith("facemetric: ")]
        wrong = (
            []
            if status == 2 and len(lines) == 1 and "Traceback" not in text
            else [f"status {status}: {text[-800:]}"]
        )
        if not options and "free some of the disk" not in text:
            wrong.append(f"another reason: {text[-300:]}")
        mounted(place, "remount,rw,size=1g")
        checkpoint = place / "run" / "checkpoint.pt"
        again = ["--resume"] if checkpoint.exists() or checkpoint.with_suffix(".previous").exists() else []
        status, text = run([*words, *again], said)
        wrong += [f"did not go on: {text[-800:]}"] if status else differences(whole, place / "run")
        return (lines or ["-"])[0].split(": ", 1)[-1].replace(str(place), ""), wrong
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main() -> None:
    """Run the campaign; status 1 where anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    faces = draw_faces(folder / "faces", identities=16, images=6, size=32, seed=1, workers=1, progress=False)
    run(["pretrain", str(faces), *ONE[2:], "--out", str(folder / "start")], folder / "said.txt")
    chance, faults, cases = random.Random(0), 0, 0
    for stage in CHOSEN:
        words = [{"FACES": str(faces), "START": str(folder / "start")}.get(w, w) for w in STAGES[stage]]
        whole = folder / stage.replace(" ", "_") / "whole"
        cache = ["--cache", str(whole.parent / "cache")] if "finetune" in words else []
        run([*words, "--out", str(whole), *cache], folder / "said.txt")
        takes = sum(path.stat().st_size for path in whole.parent.rglob("*") if path.is_file()) // 1024
        sizes = [4, *(round(takes * (n + chance.random()) / given.sizes) for n in range(given.sizes - 1))]
        for kib, options in [*((max(4, size), "") for size in sizes), (0, "ro")]:
            line, wrong = on_a_full_disk(words, whole, kib, folder, options)
            cases, faults = cases + 1, faults + bool(wrong)
            print(f"{stage}, {options or f'{kib} KiB'} of {takes}: {line} {wrong or ''}", flush=True)
    print(f"{cases} disks, {faults} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
