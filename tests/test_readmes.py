"""The READMEs name every file that there is, no other, and only commands and options that exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from facemetric import config

HOUSE = Path(__file__).resolve().parents[1]
PACKAGE = HOUSE / "facemetric"
READMES = sorted(path for path in HOUSE.rglob("*.md") if not any(part.startswith(".") for part in path.parts))
CONFIGS = {
    "align": "AlignConfig",
    "calibrate": "CalibrateConfig",
    "cluster": "ClusterConfig",
    "data check": "CheckConfig",
    "data convert": "ConvertConfig",
    "demo": "DemoConfig",
    "embed": "EmbedConfig",
    "eval": "EvalConfig",
    "export": "ExportConfig",
    "finetune": "FinetuneConfig",
    "gallery add": "GalleryAddConfig",
    "gallery check": "GalleryCheckConfig",
    "gallery list": "GalleryListConfig",
    "gallery remove": "GalleryRemoveConfig",
    "identify": "IdentifyConfig",
    "pretrain": "PretrainConfig",
    "push": "PushConfig",
    "run": "RunConfig",
    "runs": "RunsConfig",
    "verify": "VerifyConfig",
    "visualize": "VisualizeConfig",
}
OF_ALL = {"--config", "--help", "--version", "--install-completion"}
COMMAND = re.compile(r"facemetric ((?:data |gallery )?[a-z]+)\b([^\n`|)]*(?:\\\n[^\n`]*)*)")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """The commands in a text and the options of each."""
    found = []
    for line in COMMAND.finditer(text):
        words = line.group(2).split("#")[0]
        words = re.split(r"&&|;", words)[0]
        found.append((line.group(1), re.findall(r"(?<!\S)--[a-z][a-z-]*", words)))
    return [(name, options) for name, options in found if name in CONFIGS or options]


def room_readme(room: Path) -> Path:
    """The README of a room, or of the room around it."""
    return next(folder / "README.md" for folder in (room, *room.parents) if (folder / "README.md").is_file())


@pytest.mark.parametrize(
    "room", sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}), ids=lambda room: room.name
)
def test_a_rooms_readme_names_its_files_and_no_others(room: Path) -> None:
    readme = room_readme(room)
    assert readme != HOUSE / "README.md", f"{room.relative_to(HOUSE)} has no README.md"
    text = readme.read_text()
    here = {path.relative_to(readme.parent).as_posix() for path in room.glob("*.py")} - {"__init__.py"}
    here = {name for name in here if not name.endswith("/__init__.py")}
    missing = {name for name in here if f"`{name}`" not in text}
    assert not missing
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", text))
    places = (readme.parent, PACKAGE, HOUSE)
    assert not {name for name in named if not any((place / name).is_file() for place in places)}


def test_the_readme_of_the_tools_names_them_all() -> None:
    text = (HOUSE / "tools" / "README.md").read_text()
    here = {path.name for path in (HOUSE / "tools").iterdir() if path.suffix in (".py", ".sh")}
    assert {name for name in here if f"`{name}`" not in text} == set()
    assert set(re.findall(r"^\| `([a-z_]+\.(?:py|sh))`", text, re.MULTILINE)) <= here


def test_the_readme_holds_no_placeholders() -> None:
    assert re.findall(r"\b[A-Z]+_(?:OUTPUT|ROWS)\b", (HOUSE / "README.md").read_text()) == []


def test_the_tree_of_the_readme_is_the_tree() -> None:
    text = (HOUSE / "README.md").read_text()
    listed = set(re.findall(r"^  ([a-z_]+)/ ", text, re.MULTILINE))
    assert listed == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = set(re.findall(r"^  ([a-z_]+\.py) ", text, re.MULTILINE))
    assert files == {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_commands_and_options_exist(readme: Path) -> None:
    for name, options in commands(readme.read_text()):
        assert name in CONFIGS or not options, f"facemetric {name}"
        known = {f"--{f.name.replace('_', '-')}" for f in fields(getattr(config, CONFIGS[name]))}
        unknown = {o for o in options if o not in known | OF_ALL and o.replace("--no-", "--", 1) not in known}
        assert not unknown, f"facemetric {name}: {unknown}"


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_links_lead_somewhere(readme: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)\)", readme.read_text())
    assert not [target for target in targets if not (readme.parent / target).exists()]
