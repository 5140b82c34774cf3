"""A short pretrain, finetune and eval on drawn faces, on a device and on the CPU: the figures side by side.

    python tools/check_training.py FOLDER --device cuda

FOLDER gets the faces and the runs. A quarter of the people are only looked at: of their pairs is the AUC, before any
training, after stage one and after stage two. It ends with an error where a training fails, where it does not teach
what makes a person (LEARNED above the start), or where the device's figures are FAR_OFF from the CPU's: the two
trainings start alike and round differently. With --device cuda the device also varies the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from facemetric.data.drawn.draw import draw_faces

FAR_OFF = 0.1  # of an AUC on some hundred genuine pairs
LEARNED = 0.25  # more AUC than a network that has learned nothing; seen on a CPU: 0.52, then 0.89
PEOPLE, IMAGES = 96, 10
SHARED = ["--val-fraction", "0.25", "--seed", "1"]


def run(*words: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "facemetric.cli", *words], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(f"facemetric {' '.join(words)}: exit {ran.returncode}\n{ran.stderr[-1500:]}")


def figures(folder: Path, faces: Path, device: str, epochs: int) -> dict[str, float]:
    """AUC on the people that were not trained on: of the start, and after both stages."""
    on = ["--device", device, "--augment-on", "cpu" if device == "cpu" else "device", *SHARED]
    network = ["--arch", "lcnet_050", "--image-size", "48", "--batch-size", "32", *on]
    shutil.rmtree(folder, ignore_errors=True)  # runs of a check that was cut
    one, two = folder / "one", folder / "two"
    nothing = ["--lr", "1e-9", "--max-steps", "1"]
    steps = {
        "untrained": (folder / "start", ["pretrain", str(faces), *network, *nothing]),
        "stage one": (one, ["pretrain", str(faces), *network, "--epochs", str(epochs)]),
        "stage two": (two, ["finetune", str(faces), "--weights", str(one), *on, "--epochs", "5"]),
    }
    found = {}
    for name, (out, words) in steps.items():
        run(*words, "--out", str(out))
        found[name] = validated(out)
        print(f"{device}, {name}: AUC {found[name]:.3f}", flush=True)
    return found


def validated(out: Path) -> float:
    """The AUC at the end of a run."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return float([line["val_auc"] for line in lines if line["event"] == "validation"][-1])


def faults(here: dict[str, float], cpu: dict[str, float]) -> list[str]:
    """What is wrong with the figures of a device beside the CPU's; of none nothing is."""
    found = [
        f"{name}: no AUC {LEARNED} above the untrained one's"
        for name in ("stage one", "stage two")
        if not here[name] >= here["untrained"] + LEARNED
    ]
    return found + [
        f"{name}: far from the CPU" for name in here if not abs(here[name] - cpu[name]) <= FAR_OFF
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=20, help="of stage one")
    options = parser.parse_args()
    faces = options.folder / "faces"
    if len(list(faces.glob("*/*"))) != PEOPLE * IMAGES:  # none, or a drawing that was cut
        shutil.rmtree(faces, ignore_errors=True)
        size = {"identities": PEOPLE, "images": IMAGES, "size": 112}
        draw_faces(faces, **size, seed=3, workers=os.cpu_count() or 1, progress=False)
    both = {
        device: figures(options.folder / device.replace(":", ""), faces, device, options.epochs)
        for device in dict.fromkeys((options.device, "cpu"))
    }
    here, cpu = both[options.device], both["cpu"]
    wrong = faults(here, cpu)
    line = "AUC " + ", ".join(f"{name} {here[name]:.3f} (cpu {cpu[name]:.3f})" for name in here)
    print("; ".join([line, *wrong]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
