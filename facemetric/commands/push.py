"""What `facemetric push` does: weights and their card to the Hugging Face Hub, never over others unless told to."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from facemetric.config import PushConfig, require
from facemetric.config.calls import takes_options
from facemetric.errors import ConfigError, WeightsError
from facemetric.files import file_hash
from facemetric.machine import say
from facemetric.model.weights.card import card, with_front_matter, without_paths
from facemetric.model.weights.folder import (
    CONFIG,
    HUB,
    MODEL,
    find_weights,
    read_config,
    without_folders,
)
from facemetric.model.weights.hub import Remote, look_for, parse_name, same_content, send

CARD = "README.md"


@dataclass(frozen=True)
class Outgoing:
    """A file to be sent. `remote`: what the repository holds under this name: "", "same" or "other"."""

    path: str
    content: bytes
    remote: str = ""

    def line(self) -> str:
        """`config.json  4.1 kB  new`."""
        size = len(self.content)
        shown = f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
        what = {"": "new", "same": "already there", "other": "takes the place of another"}[self.remote]
        return f"  {self.path:<18} {shown:>9}  {what}"


@dataclass(frozen=True)
class Pushed:
    """What was sent, and where: `commit` is "" where nothing was, as it was there already or --dry-run was given."""

    repo: str
    files: tuple[str, ...]
    private: bool
    address: str = ""
    commit: str = ""

    def text(self) -> str:
        """What the terminal says at the end."""
        if self.commit:
            whose = "private" if self.private else "public"
            return f"sent to {self.address} ({whose}); use it as --weights {HUB}{self.repo}"
        return "nothing was sent"


@takes_options(PushConfig)
def push(config: PushConfig) -> Pushed:
    """Send weights to the Hugging Face Hub; the options are those of PushConfig.

    `push("runs/finetune", "me/faces", private=True)` is `facemetric push runs/finetune me/faces --private`.
    Raises ConfigError or WeightsError, each with what to change."""
    return run_push(config)


def run_push(config: PushConfig) -> Pushed:
    """push, from a config: shows what will be sent, then sends it in one commit.

    Raises ConfigError where the repository holds other files of these names and --replace was not given, where there is
    no token, and where --private is asked of a repository that is public."""
    require(
        bool(config.weights and config.repo),
        "push needs weights and a name: `facemetric push WEIGHTS OWNER/NAME`",
    )
    try:
        repo, revision = parse_name(config.repo)
    except WeightsError:
        raise ConfigError(
            f"{config.repo!r} is no name on the Hub; needed is OWNER/NAME, such as me/faces"
        ) from None
    require(
        revision is None,
        f"{config.repo} names a revision; weights are sent to the main one: leave out @{revision}",
    )
    files = outgoing(find_weights(config.weights), repo)
    remote = None if config.dry_run else look_for(repo)
    files = [replace(file, remote=compared(file, remote)) for file in files]
    private = remote.private if remote is not None else config.private
    where = "to be made, " if remote is None else ""
    say(f"to {HUB}{repo} ({where}{'private' if private else 'public: everybody can read it'}):")
    for file in files:
        say(file.line())
    if remote is not None and config.private and not remote.private:
        raise ConfigError(
            f"{repo} is public, and --private was given; make it private on the Hub, or name another"
        )
    others = [file.path for file in files if file.remote == "other"]
    if others and not config.replace:
        raise ConfigError(
            f"{repo} holds other files of these names: {', '.join(others)}; --replace puts yours in their place (the "
            "Hub keeps the old ones in its history), or name another"
        )
    new = {file.path: file.content for file in files if file.remote != "same"}
    done = Pushed(repo, tuple(new), private)
    if config.dry_run or not new:
        return done
    address, commit = send(repo, new, message="Weights of facemetric", on=remote, private=private)
    return replace(done, address=address, commit=commit)


def outgoing(folder: Path, repo: str) -> list[Outgoing]:
    """The files of a weights folder as they are sent: no folder of this machine is named in them.

    A README.md of the folder is the card; where there is none, one is written. Raises WeightsError for a folder that
    load_embedder would refuse."""
    config = read_config(folder)
    if not (folder / MODEL).is_file() or config.get("sha256") != file_hash(folder / MODEL):
        raise WeightsError(
            f"{folder / MODEL} is not the file that {CONFIG} describes (missing, cut short or changed)"
        )
    public = public_config(config)
    own = folder / CARD
    text = with_front_matter(own.read_text(encoding="utf-8")) if own.is_file() else card(public, repo)
    return [
        Outgoing(CONFIG, (json.dumps(public, indent=2) + "\n").encode()),
        Outgoing(MODEL, (folder / MODEL).read_bytes()),
        Outgoing(CARD, text.encode()),
    ]


def public_config(config: dict[str, Any]) -> dict[str, Any]:
    """config.json without the folders of this machine, which the options of a training hold."""
    ours = dict(config["facemetric"])
    if ours.get("provenance"):
        ours["provenance"] = without_folders(ours["provenance"])
    if ours.get("thresholds"):
        ours["thresholds"] = {
            far: one | {"chosen_on": without_paths(str(one.get("chosen_on", "")))}
            for far, one in ours["thresholds"].items()
        }
    return config | {"facemetric": ours}


def compared(file: Outgoing, remote: Remote | None) -> str:
    """What the repository holds under a file's name: nothing, the same, or another. A .gitattributes is the Hub's."""
    mark = remote.files.get(file.path) if remote is not None else None
    if mark is None:
        return ""
    return "same" if same_content(file.content, mark) else "other"
