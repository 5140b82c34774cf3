"""A weights folder on disk: `config.json` and `model.safetensors`, found by name and read without torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from facemetric.errors import WeightsError, did_you_mean, nearest_beside, writing
from facemetric.files import sync, write_text_whole

FORMAT = 1
CONFIG, MODEL = "config.json", "model.safetensors"
BEST = "best"  # the weights folder inside a run folder
GALLERY = "gallery.json"  # of a folder of enrolled people (room gallery), which is no weights folder
HUB = "hf-hub:"  # begins the name of weights on the Hugging Face Hub
OLD = ".old"  # ends the name of a folder that is being replaced
FACES = "faces"  # `pictures` of weights that expect faces cut to the template; "" of others
PACKAGE = Path(__file__).parents[2]
SHIPPED = (PACKAGE.parent / "weights", PACKAGE / "shipped")  # in a checkout, in an installed wheel


def provenance(
    *, data: str, images: int, identities: int, options: dict[str, Any], split: str = ""
) -> dict[str, Any]:
    """Where weights come from: fingerprints of the data and of its split, commit, package versions, seed and every
    option."""
    return {
        "data_fingerprint": data,
        **({"split_fingerprint": split} if split else {}),
        "images": images,
        "identities": identities,
        "seed": options.get("seed"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
        "facemetric": metadata.version("facemetric"),
        "options": options,
    }


def git_commit() -> str | None:
    """The commit of the source checkout, with `+` where it has changes; None outside one."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def is_onnx(name: str | Path) -> bool:
    """Whether a name is that of an ONNX file, which eval and embed take in place of weights."""
    return str(name).lower().endswith(".onnx")


def find_onnx(name: str | Path) -> Path:
    """The file of an ONNX model. Raises WeightsError where it is not there."""
    if not Path(name).is_file():
        raise WeightsError(f"{name}: no such file; name an ONNX file, a weights folder or a shipped name")
    return Path(name)


def find_weights(name: str | Path, *, fetch: bool = True) -> Path:
    """The weights folder of a path, a shipped name, or of hf-hub:OWNER/NAME, which is brought from the Hub where the
    cache lacks it (not without `fetch`). Raises WeightsError for neither."""
    if str(name).startswith(HUB):
        from facemetric.model.weights.hub import hub_folder

        return hub_folder(str(name), cached=not fetch)
    shipped = {folder.name: folder for folder in shipped_weights()}
    if not str(name):
        raise WeightsError(
            f"no weights were given; name a weights folder, a run folder or a shipped name ({', '.join(shipped)})"
        )
    path = Path(name)
    for folder in (path, path / BEST, path / (BEST + OLD), shipped.get(str(name), path)):
        if (folder / CONFIG).is_file():
            return folder
    if is_onnx(path) and path.is_file():
        raise WeightsError(
            f"{path} is an ONNX file, which eval, embed, verify, gallery and identify take; name a weights folder here"
        )
    if (path / GALLERY).is_file():
        raise WeightsError(f"{path} is a gallery, not weights; name the weights that it was made with")
    if path.is_dir():
        raise WeightsError(f"{path} holds no {CONFIG} and no {BEST}/{CONFIG}; name a weights or run folder")
    if path.is_file():
        raise WeightsError(
            f"{path} is a file; name the folder that it lies in, with its {CONFIG}: {path.parent}"
        )
    hint = nearest_beside(path, lambda beside: any((beside / at / CONFIG).is_file() for at in ("", BEST)))
    hint = hint or (did_you_mean(str(name), shipped) if shipped else "")
    raise WeightsError(f"no weights at {str(name)!r}, and none are shipped under that name{hint}")


def shipped_weights() -> list[Path]:
    """Folders of the weights that come with facemetric, by name; each once."""
    found: dict[str, Path] = {}
    for root in SHIPPED:
        for config in root.glob(f"*/{CONFIG}"):
            found.setdefault(config.parent.name, config.parent)
    return [found[name] for name in sorted(found)]


def is_shipped(folder: Path) -> bool:
    """Whether a folder is one that comes with facemetric, by whatever path or link it was named."""
    real = os.path.realpath(folder)
    return any(
        real == os.path.realpath(config.parent) for root in SHIPPED for config in root.glob(f"*/{CONFIG}")
    )


def name_of_copy(folder: Path) -> str:
    """The name for a copy of weights that are not the user's own to change, "" for those that are.

    Shipped weights are not, and neither are those in the cache of the Hub, which other programs read."""
    if is_shipped(folder):
        return os.path.basename(os.path.realpath(folder))
    cached = folder.absolute()  # .../models--OWNER--NAME/snapshots/COMMIT
    if cached.parent.name == "snapshots" and cached.parents[1].name.startswith("models--"):
        return cached.parents[1].name.rpartition("--")[2]
    return ""


def without_folders(value: Any) -> Any:
    """Options with the names of files in place of their paths: where they lay is nobody's business."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and "/" in value and not value.startswith(HUB):
        name, equals, path = value.rpartition("=")
        return f"{name}{equals}{Path(path).name}"
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """The checked config.json of a weights folder."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    ours = config.get("facemetric") if isinstance(config, dict) else None
    if not isinstance(ours, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} is not a config of facemetric: 'architecture' or 'facemetric' is missing")
    if ours.get("format") != FORMAT:
        raise WeightsError(
            f"{path} has format {ours.get('format')}, this version reads {FORMAT}; update facemetric"
        )
    missing = [field for field in ("preprocess", "embedding_size") if field not in ours]
    if missing:
        raise WeightsError(f"{path} lacks {', '.join(missing)}; make the weights again")
    if not isinstance(ours["preprocess"], dict):
        raise WeightsError(f"{path}: preprocess is {ours['preprocess']!r:.60}; make the weights again")
    return config


def expected_pictures(config: Mapping[str, Any]) -> str:
    """What pictures weights expect, of their config.json: FACES, or "" for any others."""
    pictures = config["facemetric"].get("pictures", "")
    if pictures not in ("", FACES):
        raise WeightsError(
            f"{CONFIG} says that the weights expect {pictures!r:.40}; this version knows {FACES!r} alone, and no entry "
            "for other pictures: install a newer one"
        )
    return str(pictures)


def amend_config(folder: Path, **entries: Any) -> Path:
    """Change entries of `facemetric` in the config.json of a weights folder; the file appears whole."""
    config = read_config(folder)
    config["facemetric"] |= entries
    text = json.dumps(config, indent=2) + "\n"
    return write_text_whole(folder / CONFIG, text, durable=True)


def check_copy(folder: Path, target: Path) -> None:
    """Raise WeightsError unless `target` is free, or a copy of these weights that was made before."""
    if target.exists() and read_config(target).get("sha256") != read_config(folder).get("sha256"):
        raise WeightsError(f"{target} holds other weights than {folder}; name another --out")


def copy_weights(folder: Path, target: Path) -> None:
    """Copy a weights folder, which appears whole; a copy that is there already keeps what was added to it."""
    check_copy(folder, target)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(target.name + ".new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with writing(target):
            shutil.copytree(folder, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    replace_folder(staging, target)


def replace_folder(new: Path, target: Path) -> None:
    """Put the folder `new` in the place of `target`; at every moment one of them is whole on disk."""
    old = target.with_name(target.name + OLD)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def mend_folder(target: Path) -> None:
    """Undo a replacement that was cut off half way: the old folder is in its place again."""
    old = target.with_name(target.name + OLD)
    if old.exists() and not target.exists():
        os.replace(old, target)
