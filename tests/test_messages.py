"""Errors name an option as its reader writes it: `--batch-size 30` on the terminal, `batch_size=30` in Python."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import facemetric as fm
from facemetric import config
from facemetric.cli import main
from facemetric.config.calls import in_python, on_terminal
from facemetric.config.checks import check_verify
from facemetric.errors import ConfigError, FacemetricError, given

PACKAGE = Path(fm.__file__).parent
KINDS = {name: getattr(config, name) for name in config.__all__ if name.endswith("Config")}
HINTS = {name: hint for kind in KINDS.values() for name, hint in get_type_hints(kind).items()}
CALLS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("pretrain", ["FACES"], {"epochs": 0}),
    ("pretrain", ["FACES"], {"max_bad": 2.0}),
    ("pretrain", ["FACES"], {"resume": True}),
    ("pretrain", ["FACES"], {"scheduler": "plateau"}),
    ("pretrain", ["FACES"], {"head_args": "centres = 3"}),
    ("pretrain", ["FACES"], {"relation_weight": 1.0}),
    ("pretrain", ["FACES"], {"device": "cuda:77"}),
    ("pretrain", [], {}),
    ("finetune", ["FACES"], {}),
    ("finetune", ["FACES"], {"weights": "faces-112", "batch_size": 4}),
    ("finetune", ["FACES"], {"weights": "faces-112", "loss": "supcon", "margin": 0.5}),
    ("finetune", ["FACES"], {"weights": "faces-112", "loss_args": "gamma = 1"}),
    ("finetune", ["FACES"], {"weights": "faces-112", "freeze": ["none"], "alike": 2}),
    (
        "finetune",
        ["FACES"],
        {"weights": "faces-112", "freeze": ["backbone", "none"], "freeze_epochs": [1, 2]},
    ),
    ("eval", [], {}),
    ("eval", [], {"weights": "faces-112"}),
    ("eval", [], {"weights": "faces-112", "pairs": "pairs.csv", "all_pairs": True}),
    ("eval", [], {"weights": "faces-112", "data": ["FACES"], "folds": 1}),
    ("eval", [], {"weights": "faces-112", "data": ["FACES"], "out": Path("roc.png")}),
    ("calibrate", [], {"weights": "faces-112"}),
    ("calibrate", ["FACES"], {"weights": "faces-112", "far": [2.0]}),
    ("verify", [], {"weights": "faces-112"}),
    ("verify", ["IMAGE", "IMAGE"], {"weights": "faces-112", "far": 1e-9}),
    ("verify", ["IMAGE", "IMAGE"], {"weights": "faces-112", "detector": "nowhere:find"}),
    ("verify", ["IMAGE", "IMAGE"], {"weights": "faces-112", "faces": "off", "min_quality": 0.5}),
    ("cluster", [], {}),
    ("cluster", ["FACES"], {"threshold": 0.5}),
    ("cluster", ["FACES"], {"weights": "faces-112", "threshold": 1.2}),
    ("cluster", ["FACES"], {"weights": "faces-112", "threshold": 0.5, "sheets": -1}),
    ("align", [], {}),
    ("align", ["FACES"], {"quality": 0}),
    ("embed", [], {"weights": "faces-112"}),
    ("embed", ["FACES"], {"weights": "faces-112", "out": Path("e.xlsx")}),
    ("export", ["faces-112"], {"int8": True}),
    ("export", ["faces-112"], {"int8": True, "to": "openvino"}),
    ("visualize", [], {"weights": "faces-112", "data": ["FACES"], "images": 1}),
    ("identify", [], {}),
    ("identify", ["IMAGE"], {"gallery": "staff", "show": Path("show.txt")}),
    ("run", [], {}),
]
NAMES = {"eval": "evaluate", "data check": "check_data"}  # of commands that Python calls otherwise


def shell_words(options: dict[str, Any]) -> list[str]:
    """Options of Python as the terminal has them."""
    words = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{name}")
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def prose(message: str) -> str:
    """A message without the commands in it, which stand in backticks."""
    return " ".join(message.split("`")[::2])


@pytest.mark.parametrize(("name", "given_", "options"), CALLS, ids=lambda value: str(value)[:40])
def test_every_error_speaks_as_its_caller_does(
    name: str,
    given_: list[str],
    options: dict[str, Any],
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    image = next(path for path in sorted(faces.rglob("*")) if path.is_file())
    words = [{"FACES": str(faces), "IMAGE": str(image)}.get(word, word) for word in given_]
    options = {k: [str(faces)] if v == ["FACES"] else v for k, v in options.items()}
    several = name not in ("verify", "export", "run") and len(words) > 0
    with pytest.raises(FacemetricError) as caught:
        getattr(fm, NAMES.get(name, name))(*([words] if several else words), **options)
    in_a_script = str(caught.value)
    with pytest.raises(SystemExit) as end:
        main([name, *words, *shell_words(options)])
    typed = capsys.readouterr().err.removeprefix("facemetric: ").strip()
    assert end.value.code == 2
    assert "--" not in prose(in_a_script)
    assert not re.search(r"--[a-z-]+=", prose(typed))
    assert not re.search(r"[a-z]=( |$|True|False|')", prose(typed))
    mentioned = re.findall(r"--(?:no-)?([a-z][a-z0-9-]*[a-z0-9])", prose(typed))
    assert all(re.search(rf"\b{word.replace('-', '_')}\b", in_a_script) for word in mentioned)


@pytest.mark.parametrize(
    ("message", "script", "typed"),
    [
        ("lower --batch-size to 30", "lower batch_size= to 30", "lower --batch-size to 30"),
        ("set --batch-size 30", "set batch_size=30", "set --batch-size 30"),
        ("--far is 2.0; it is", "far is 2.0; it is", "--far is 2.0; it is"),
        ("--lr 1e-3.", "lr=1e-3.", "--lr 1e-3."),
        ("by --freeze backbone, or", "by freeze='backbone', or", "by --freeze backbone, or"),
        ("--resume or --no-labels", "resume=True or labels=False", "--resume or --no-labels"),
        (f"{given('--out', 'a b')}: no", "out='a b': no", "--out 'a b': no"),
        (f"{given('--out', 'a/b.c')}; no", "out='a/b.c'; no", "--out a/b.c; no"),
        (given("--out", "it's"), 'out="it\'s"', "--out 'it'\"'\"'s'"),
        (
            "see `facemetric eval --data X`",
            "see `facemetric eval --data X`",
            "see `facemetric eval --data X`",
        ),
        ("a--resume, --resume-", "a--resume, --resume-", "a--resume, --resume-"),
    ],
)
def test_an_option_and_its_value(message: str, script: str, typed: str) -> None:
    assert in_python(fm.FinetuneConfig, message) == script
    assert on_terminal(message) == typed


def messages() -> Iterator[tuple[str, str]]:
    """Every text of the package but docstrings, its fields as {...}, and where it is."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        apart = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                apart |= {id(part) for part in ast.walk(node) if part is not node}
        for node in ast.walk(tree):
            if id(node) in apart:
                continue
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield where, node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{...}" for v in node.values)
                yield where, "".join(map(str, parts))


def test_a_value_that_can_be_any_text_is_marked_as_one() -> None:
    """`--out {path}` could not be told from `--out names a file`: errors.given writes `--out={path}`."""
    numeric = (int, float)
    for where, text in messages():
        for name in re.findall(r"--([a-z][a-z0-9-]*[a-z0-9]) \{\.\.\.\}", prose(text)):
            hint = str(HINTS.get(name.replace("-", "_"), "command line"))
            known = any(kind.__name__ in hint for kind in numeric) or "Literal" in hint
            allowed = (
                known
                or hint == "command line"
                or where.startswith(("model/weights/card", "commands/calibrate"))
            )
            allowed = allowed or where.startswith(("commands/push", "cli_words"))  # printed, no error
            assert allowed, f"{where}: --{name} {{...}}; write given('--{name}', value)"


def test_options_that_messages_name_exist() -> None:
    theirs = {"config", "help", "logdir", "porcelain", "untracked-files", "wall", "dry-run"}
    for where, text in messages():
        if where.startswith("config/build"):  # the names that other programs have
            continue
        for name in re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z0-9-]*[a-z0-9])(?![\w-])", text):
            assert name.replace("-", "_") in HINTS or name in theirs, f"{where}: --{name}"


def test_commands_in_errors_stand_in_backticks() -> None:
    """So that Python leaves them as they are."""
    for where, text in messages():
        if where.startswith(("cli", "model/weights/card", "commands/calibrate", "commands/demo")):
            continue  # the terminal's own, texts to copy
        loose = re.search(r"facemetric (?:data |gallery )?[a-z]+ (?:[A-Z]|\{|--)", prose(text))
        assert not loose, f"{where}: {text!r}"


def test_a_verifier_speaks_python() -> None:
    with pytest.raises(ConfigError, match=r"^detector='nowhere:find' does not import"):
        fm.Verifier("faces-112", detector="nowhere:find")
    with pytest.raises(ConfigError, match="verify needs two images"):
        check_verify(fm.VerifyConfig("a.jpg"))


def test_the_help_names_every_loss_and_leads_to_the_heads(capsys: pytest.CaptureFixture[str]) -> None:
    from facemetric.mining import LOSSES
    from facemetric.model.heads import HEADS

    shown = []
    for words in (["finetune", "--help"], ["pretrain", "--help"], ["heads"]):
        with pytest.raises(SystemExit):
            main(words)
        shown.append(" ".join(capsys.readouterr().out.replace("│", " ").split()))
    told = shown[0][shown[0].index("--loss ") :][:600]
    assert [name for name in LOSSES if not re.search(rf"(?<![\w-]){name}(?![\w-])", told)] == []
    assert "`facemetric heads` lists them" in shown[1]
    assert [name for name in HEADS if not re.search(rf"(?<![\w-]){name}(?![\w-])", shown[2])] == []
