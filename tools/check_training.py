"""A short pretrain, finetune and eval on drawn faces, on a device and on the CPU: the figures side by side.

    python tools/check_training.py FOLDER --device cuda

FOLDER gets the faces and the runs. The two trainings start alike and round differently: figures within a few hundredths
of each other are as they should be. It ends with an error where a training fails, or a figure is far off.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from facemetric.data.drawn.draw import draw_faces

FAR_OFF = 0.1  # of an AUC on some hundred drawn pairs


def run(*words: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "facemetric.cli", *words], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        sys.exit(f"facemetric {' '.join(words)}: exit {ran.returncode}\n{ran.stderr[-1500:]}")


def figures(folder: Path, faces: Path, device: str, epochs: int) -> dict[str, float]:
    """AUC of both stages."""
    shared = ["--device", device, "--epochs", str(epochs), "--val-fraction", "0.25", "--seed", "1"]
    run(
        "pretrain",
        str(faces),
        "--arch",
        "lcnet_050",
        "--image-size",
        "64",
        *shared,
        "--out",
        str(folder / "one"),
    )
    run("finetune", str(faces), "--weights", str(folder / "one"), *shared, "--out", str(folder / "two"))
    found = {}
    for stage in ("one", "two"):
        out = folder / f"eval-{stage}"
        run(
            "eval",
            "--weights",
            str(folder / stage),
            "--all-pairs",
            "--data",
            str(faces),
            "--device",
            device,
            "--out",
            str(out),
        )
        metrics = json.loads(next(out.glob("**/metrics.json")).read_text())
        found[f"auc of stage {stage}"] = float(auc(metrics))
    return found


def auc(found: object) -> float:
    """The first AUC of a metrics.json, wherever it stands."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key == "auc" and isinstance(value, int | float):
                return float(value)
            inner = auc(value)
            if inner == inner:
                return inner
    return float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    faces = options.folder / "faces"
    if not faces.exists():
        draw_faces(faces, identities=48, images=8, size=64, seed=3, workers=2, progress=False)
    both = {
        device: figures(options.folder / device.replace(":", ""), faces, device, options.epochs)
        for device in dict.fromkeys((options.device, "cpu"))
    }
    here, cpu = both[options.device], both["cpu"]
    print("; ".join(f"{name} {here[name]:.4f} (cpu {cpu[name]:.4f})" for name in here))
    return int(any(not abs(here[name] - cpu[name]) <= FAR_OFF for name in here))


if __name__ == "__main__":
    sys.exit(main())
