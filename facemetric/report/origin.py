"""Where a report comes from: what was scored, with which weights, by which versions, when."""

from __future__ import annotations

import platform
from datetime import datetime
from pathlib import Path
from typing import Any

from facemetric.model.folder import file_hash
from facemetric.report.page_records import Origin
from facemetric.report.record import Evaluation
from facemetric.training.run import provenance


def origin_of(
    found: Evaluation,
    *,
    command: str,
    options: dict[str, Any],
    toml: str,
    weights: tuple[Path, dict[str, Any]] | None,
) -> Origin:
    """The origin of an evaluation. `weights`: their folder and its config.json; None for embeddings from elsewhere."""
    index = found.images
    fingerprint = index.fingerprint if index is not None else ""
    people = len(set(found.table.identities.tolist()))
    here = provenance(data=fingerprint, images=len(found.table), identities=people, options=options)
    facts = [*weights_facts(*weights)] if weights is not None else []
    facts += [
        ("Scored", f"{here['images']:,} images of {here['identities']:,} identities"),
        ("Data fingerprint", fingerprint),
        ("Pairs", found.pairs),
        ("Pairs sha256", file_hash(Path(found.pairs)) if found.pairs and Path(found.pairs).is_file() else ""),
        ("Seed", str(here["seed"])),
        ("facemetric", " ".join(filter(None, (here["facemetric"], here["git_commit"])))),
        ("Versions", ", ".join(f"{name} {version}" for name, version in here["versions"].items())),
        ("Machine", f"{platform.system()} {platform.machine()}"),
        ("Written", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %z")),
    ]
    return Origin(command, tuple((name, value) for name, value in facts if value), toml)


def weights_facts(folder: Path, config: dict[str, Any]) -> list[tuple[str, str]]:
    """What config.json says of the weights."""
    ours = config["facemetric"]
    origin = ours.get("provenance") or {}
    trained = ""
    if origin.get("images"):
        trained = f"{origin['images']:,} images of {origin.get('identities', 0):,} identities"
    height, width = ours["preprocess"].get("size", ("?", "?"))
    return [
        ("Weights", str(folder)),
        ("Weights sha256", str(config.get("sha256") or "")),
        (
            "Architecture",
            f"{config['architecture']}, {ours['embedding_size']} numbers, {width} x {height} pixels",
        ),
        ("Trained on", trained),
        ("Training data fingerprint", str(origin.get("data_fingerprint") or "")),
        ("Training commit", str(origin.get("git_commit") or "")),
    ]
