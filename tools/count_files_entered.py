"""Which files of the package a call of a command enters, and how often it climbs to a higher floor.

    python tools/count_files_entered.py            # pretrain, finetune, eval and verify on drawn faces
    python tools/count_files_entered.py eval -v    # one of them, with its files

Counted by `sys.setprofile` (and `threading.setprofile`), from the call of the command's own function to its end,
imports done before: a file is entered when one of its functions, methods or comprehensions runs. A climb is a call
whose callee is on a higher floor than its caller (data calls evaluation), frames of other packages left out: with
imports that only go down, these are callbacks. The counts take no other package than facemetric, so that the tool
runs on an older checkout as well: PYTHONPATH=OLD python tools/count_files_entered.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import facemetric

ROOT = Path(facemetric.__file__).parent
FLOORS = {
    "errors": 0,
    "files": 0,
    "machine": 0,
    "config": 0,
    "data": 1,
    "mining": 1,
    "faces": 2,
    "model": 2,
    "evaluation": 3,
    "gallery": 4,
    "training": 4,
    "report": 4,
    "commands": 5,
}
TOP = 6
OLD_COMMANDS = (  # modules of report/ that are commands, in a checkout where they were there
    *("calibrate", "catalog", "check", "check_images", "check_sheets", "cluster", "columns", "embedding"),
    *("findings", "origin", "runs", "scorecard", "scoring", "tables", "verify", "visualize"),
)
NAMES = ("pretrain", "finetune", "eval", "verify")


def floor(file: str) -> int:
    """The floor of a file of the package, by its room."""
    parts = Path(file).parts
    if parts[0] == "report" and Path(parts[-1]).stem in OLD_COMMANDS:
        return FLOORS["commands"]
    return FLOORS.get(parts[0].removesuffix(".py"), TOP)


class Counter:
    """Files that are entered while it is on, and calls that climb."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.climbs: dict[tuple[str, str], int] = {}
        self.inside: dict[str, str] = {}  # a code's file within the package, "" outside

    def file(self, frame: FrameType) -> str:
        """The frame's file within the package, "" for any other; the body of a module that is imported is none."""
        name = frame.f_code.co_filename
        if name not in self.inside:
            path = Path(name)
            self.inside[name] = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else ""
        return "" if frame.f_code.co_name == "<module>" else self.inside[name]

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        """What `sys.setprofile` calls."""
        if event != "call" or not (here := self.file(frame)):
            return
        self.files[here] = self.files.get(here, 0) + 1
        caller = frame.f_back
        while caller is not None and not (there := self.file(caller)):
            caller = caller.f_back
        if caller is not None and there != here and floor(here) > floor(there):
            self.climbs[there, here] = self.climbs.get((there, here), 0) + 1

    @contextlib.contextmanager
    def on(self) -> Any:
        """Count what the body calls, in all threads that it starts."""
        threading.setprofile(self.profile)
        sys.setprofile(self.profile)
        try:
            yield self
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]


def find(*names: str) -> Any:
    """The first of some `module:attribute` names that is there."""
    for name in names:
        module, _, attribute = name.partition(":")
        with contextlib.suppress(ImportError, AttributeError):
            return getattr(importlib.import_module(module), attribute)
    raise SystemExit(f"none of {', '.join(names)} is in {ROOT}")


def prepare(scratch: Path) -> dict[str, Callable[[], Any]]:
    """Drawn faces and pairs of them, and the calls of the commands on these."""
    draw = find("facemetric.data.drawn.draw:draw_faces", "facemetric.data.drawn:draw_faces")
    make = find("facemetric.data.pair_images:make_pairs", "facemetric.data.pairing:make_pairs")
    name = find("facemetric.data.pair_images:name_pairs", "facemetric.data.pairing:name_pairs")
    write, read = find("facemetric.data.pairs:write_pairs"), find("facemetric.data.index:read_index")
    faces = draw(scratch / "faces", identities=16, images=6, size=32, seed=1, workers=1, progress=False)
    index = read([str(faces)])
    pairs = faces.parent / "pairs.csv"
    write(pairs, name_pairs_of(make, name, index))
    common: dict[str, Any] = {"device": "cpu", "workers": 0, "seed": 0}
    first, second = scratch / "pretrain", scratch / "finetune"
    images = sorted(faces.glob("*/*"))[:2]
    return {
        "pretrain": lambda: facemetric.pretrain(
            str(faces), arch="test_resnet", image_size=32, epochs=1, batch_size=16, out=first, **common
        ),
        "finetune": lambda: facemetric.finetune(
            str(faces), weights=str(first), freeze="backbone", epochs=1, batch_size=32, out=second, **common
        ),
        "eval": lambda: facemetric.evaluate(
            str(first), pairs=pairs, data=str(faces), out=scratch / "eval", **common
        ),
        "calibrate": lambda: facemetric.calibrate(
            str(faces), weights=str(first), far=0.1, out=scratch / "calibrate", **common
        ),
        "verify": lambda: facemetric.verify(
            str(images[0]), str(images[1]), weights=str(first), far=0.1, device="cpu"
        ),
    }


def name_pairs_of(make: Any, name: Any, index: Any) -> Any:
    """240 pairs of an index in four folds."""
    return name(make(index.identity, count=240, folds=4, seed=0), [index.name(i) for i in range(len(index))])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", default=[*NAMES], help=f"of {', '.join(NAMES)}")
    parser.add_argument("-v", "--verbose", action="store_true", help="name the files and the climbs")
    options = parser.parse_args()
    if unknown := set(options.commands) - set(NAMES):
        raise SystemExit(f"unknown {', '.join(sorted(unknown))}; choose of {', '.join(NAMES)}")
    print(f"{ROOT}: {len(list(ROOT.rglob('*.py')))} modules")
    print(f"{'':<9} files  climbs  calls that climb")
    with tempfile.TemporaryDirectory() as scratch:
        calls = prepare(Path(scratch))
        for name, call in calls.items():  # all: a later one needs what an earlier one left
            counter = Counter()
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
                counter.on(),
            ):
                call()
            if name not in options.commands:
                continue
            print(
                f"{name:<9} {len(counter.files):5}  {len(counter.climbs):6}  {sum(counter.climbs.values()):16,}"
            )
            if options.verbose:
                print("".join(f"    {file}  {n:,}\n" for file, n in sorted(counter.files.items())), end="")
                for (there, here), n in sorted(counter.climbs.items()):
                    print(f"    climbs: {there} to {here}, {n:,} times")


if __name__ == "__main__":
    main()
