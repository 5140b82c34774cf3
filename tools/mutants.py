"""Mutation testing of a seeded sample of mutants: each file's share, tried by mutmut, counted with its interval.

    pip install 'mutmut>=3.8'
    python tools/mutants.py --sample 400 --seed 0     # once more: goes on where it stopped
    python tools/mutants.py --sample 400 --seed 0 --again    # the survivors, after new tests
    python tools/mutants.py --files facemetric/mining/tiles.py --sample 50    # of some files alone
    python tools/mutants.py --report                 # what is known, and the mutants that live
    python -m mutmut show NAME                        # one of them

Which files and tests: [tool.mutmut] in pyproject.toml. The first run begins with all these tests, to learn which of
them reach a mutant, and each BATCH with those of its mutants on sound code: some minutes. The sample is stratified: the
same share of every file, drawn without looking. A mutant that outlasts its time counts as killed. All mutants:
`python -m mutmut run`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from facemetric.evaluation.intervals.records import wilson

ALIVE = (0, 5, 33)  # mutmut's exit codes: survived, no tests
BATCH = 150  # mutants for one mutmut process, which first runs their tests on sound code


def files(patterns: list[str]) -> list[Path]:
    """Those that are mutated, of which `patterns` keep some."""
    config = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    found = sorted(path for pattern in config["only_mutate"] for path in Path().glob(pattern))
    kept = [path for path in found if not patterns or any(path.match(pattern) for pattern in patterns)]
    return kept or sys.exit(f"no file of [tool.mutmut] only_mutate is {' or '.join(patterns)}")


def meta(path: Path) -> Path:
    return Path("mutants", f"{path}.meta")


def names(path: Path) -> list[str]:
    """The mutants of a file in order; mutmut's list of the last run where the file is older."""
    if meta(path).exists() and meta(path).stat().st_mtime > path.stat().st_mtime:
        return list(results(path))
    from mutmut.mutation.file_mutation import mutate_file_contents

    module = ".".join(path.with_suffix("").parts)
    return [f"{module}.{name}" for name in mutate_file_contents(str(path), path.read_text()).mutant_names]


def results(path: Path) -> dict[str, int | None]:
    """Exit code by mutant of one file, None where it was not tried."""
    return json.loads(meta(path).read_text())["exit_code_by_key"] if meta(path).exists() else {}


def draw(paths: list[Path], share: float, seed: int) -> dict[Path, list[str]]:
    """The same share of the mutants of each file; a larger share holds the smaller one."""
    drawn = {}
    for path in paths:
        all_names = names(path)
        random.Random(f"{seed} {path}").shuffle(all_names)
        drawn[path] = all_names[: round(share * len(all_names))]
    return drawn


def run(wanted: list[str], processes: int) -> None:
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        subprocess.run(
            [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes), *part], check=True
        )


def report(paths: list[Path], drawn: dict[Path, list[str]] | None = None) -> None:
    total: Counter[str] = Counter()
    for path in paths:
        known = {k: v for k, v in results(path).items() if v is not None}
        if drawn is not None:
            known = {k: v for k, v in known.items() if k in drawn[path]}
        alive = [k for k, v in known.items() if v in ALIVE]
        total += Counter(tried=len(known), killed=len(known) - len(alive))
        print(line(str(path), len(known) - len(alive), len(known)))
        print("".join(f"    {name}\n" for name in alive), end="")
    print(line("in all", total["killed"], total["tried"]))


def line(what: str, killed: int, tried: int) -> str:
    if not tried:
        return f"{what:42} none tried"
    share, low, high, _ = wilson(killed, tried)
    return f"{what:42} {killed:5} of {tried:5} killed  {share:6.1%}  ({low:.1%} to {high:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=400, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="try the survivors among them once more")
    parser.add_argument("--report", action="store_true", help="run nothing, count all that was tried")
    parser.add_argument("--files", nargs="+", default=[], help="patterns of the files, in place of all")
    options = parser.parse_args()
    paths = files(options.files)
    if options.report:
        report(paths)
        return
    count = sum(len(names(path)) for path in paths)
    drawn = draw(paths, min(options.sample / count, 1.0), options.seed)
    wanted = []
    for path, mine in drawn.items():
        known = results(path)
        wanted += [n for n in mine if known.get(n) is None or (options.again and known[n] in ALIVE)]
    random.Random(options.seed).shuffle(wanted)  # so that a run that is cut short is a sample too
    run(wanted, options.processes)
    report(paths, drawn)


if __name__ == "__main__":
    main()
