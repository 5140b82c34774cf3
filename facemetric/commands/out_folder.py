"""One rule for --out of the commands that leave a folder of results: the very same command may write its files again,
and whatever else is there is refused.

`made_by.json` says what the folder's results are of. Until there are results, those of any options may come."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from facemetric.commands.embedding import is_stored
from facemetric.config import (
    CalibrateConfig,
    CheckConfig,
    ClusterConfig,
    EvalConfig,
    ExportConfig,
    VisualizeConfig,
    config_dict,
    differences,
)
from facemetric.errors import ConfigError, given
from facemetric.files import file_hash, write_text_whole
from facemetric.training.run.folder import BAD_IMAGES

MADE_BY, RUN_RECORD = "made_by.json", "run.json"  # the second is of `facemetric run`
MISSING = "missing_images.txt"
COMMANDS: dict[type, str] = {
    EvalConfig: "eval",
    ClusterConfig: "cluster",
    CheckConfig: "data check",
    CalibrateConfig: "calibrate",
    ExportConfig: "export",
    VisualizeConfig: "visualize",
}
REMEDY = "name another --out, or remove it"
# Options that results do not depend on, or that choose how many of them are written.
FREE = ("out", "workers", "device", "batch_size", "max_bad", "report", "page", "sheets")
# Options that name these, or embeddings of them.
IMAGES_OR_WEIGHTS = ("data", "against", "gallery", "cohort", "weights", "compare")


class Fingerprinted(Protocol):
    """Weights, or an index of images."""

    @property
    def fingerprint(self) -> str: ...


def claim_out(config: Any, **of: Fingerprinted | None) -> None:
    """Take --out for results of these weights and images; what a start that had no results left is removed.

    Raises ConfigError where it holds something else, which has other options, or other content under their names."""
    content = {
        f"sha256 of the {name}": "" if one is None else one.fingerprint[:12] for name, one in of.items()
    }
    content |= {f"sha256 of {name}": found[:12] for name, found in file_hashes(config).items()}
    out, before = config.out, _check(config, content)
    if before:
        named = {os.path.realpath(text) for _, texts in _texts(config) for text in texts}
        left = [*out.glob(f"*{BAD_IMAGES}"), *out.glob(MISSING)]
        for path in [*left, *([] if before["results"] else out.glob("embeddings*.npz"))]:
            if os.path.realpath(path) not in named:
                path.unlink()
    note = {"command": COMMANDS[type(config)], "options": _options(config), "content": content}
    _write(config.out, note | {"results": bool(before.get("results"))})


def results_come(config: Any) -> None:
    """Note that results are written from here on, so that those of other options are refused."""
    _write(config.out, _made_by(config.out) | {"results": True})


def file_hashes(config: Any) -> dict[str, str]:
    """SHA-256 of each file that an option names, by `--option`, or `--option FILE` of several; images and weights have
    fingerprints, and may be large."""
    hashes = {}
    for name, texts in _texts(config):
        for file in filter(os.path.isfile, texts):
            if name in IMAGES_OR_WEIGHTS and not is_stored(file):
                continue
            option = f"--{name.replace('_', '-')}"
            hashes[f"{option} {file}" if len(texts) > 1 else option] = file_hash(Path(file))
    return hashes


def _check(config: Any, content: dict[str, str]) -> dict[str, Any]:
    """The record of what --out holds, {} of nothing."""
    out, before, command = config.out, _made_by(config.out), COMMANDS[type(config)]
    if not before:
        there = os.listdir(out) if out.is_dir() else []
        if others := [name for name in there if name != RUN_RECORD and not name.startswith(".")]:
            raise ConfigError(f"{given('--out', out)} holds other files ({min(others)}, ...); {REMEDY}")
        return {}
    onto = config.onto if isinstance(config, ClusterConfig) else None
    same = {os.path.realpath(path) for path in (out, out / "clusters.csv")}
    if not before["results"] or (onto and os.path.realpath(onto) in same):
        return before  # --onto: the clustering that is there is gone on with
    if before["command"] != command:
        raise ConfigError(f"{given('--out', out)} holds the results of {before['command']}; {REMEDY}")
    was, now = _options(type(config)()) | before["options"], _options(config)  # an option may be younger
    if other := differences(was, now) or differences(before["content"], content):
        raise ConfigError(f"{given('--out', out)} holds another {command} ({other}); {REMEDY}")
    return before


def _options(config: Any) -> dict[str, Any]:
    """What results depend on; a path is the same however it is written."""
    free = (*FREE, *(["far"] if isinstance(config, CalibrateConfig) else []))  # each FAR adds its threshold
    return {name: _placed(value) for name, value in config_dict(config).items() if name not in free}


def _placed(value: Any) -> Any:
    if isinstance(value, list):
        return [_placed(each) for each in value]
    return os.path.realpath(value) if isinstance(value, str) and os.path.exists(value) else value


def _texts(config: Any) -> Iterator[tuple[str, list[str]]]:
    """The options by name, each with its texts: what may name a file."""
    for name, value in config_dict(config).items():
        texts = value if isinstance(value, list) else [value]
        yield name, [text for text in texts if isinstance(text, str)]


def _write(out: Path, note: dict[str, Any]) -> None:
    write_text_whole(out / MADE_BY, json.dumps(note, indent=2) + "\n")


def _made_by(out: Path) -> dict[str, Any]:
    try:
        note = json.loads((out / MADE_BY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        note = None
    if not isinstance(note, dict) or not note.keys() >= {"command", "options", "content", "results"}:
        raise ConfigError(f"{out / MADE_BY} is damaged; {REMEDY}")
    return note
