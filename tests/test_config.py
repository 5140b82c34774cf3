"""Every option stands once: the flag, the TOML key and the Python argument give the same config."""

from __future__ import annotations

import ast
import json
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
import pytest

import facemetric
from facemetric import cli
from facemetric import config as options
from facemetric.config import (
    AlignConfig,
    CalibrateConfig,
    CheckConfig,
    ClusterConfig,
    DemoConfig,
    EvalConfig,
    ExportConfig,
    FinetuneConfig,
    PretrainConfig,
    RunConfig,
    VerifyConfig,
    VisualizeConfig,
    check_stage,
    config_command,
    config_dict,
    config_toml,
    make_config,
)
from facemetric.config.calls import takes_options
from facemetric.config.fields import Range
from facemetric.errors import ConfigError

KINDS: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "eval": EvalConfig,
    "visualize": VisualizeConfig,
    "calibrate": CalibrateConfig,
    "verify": VerifyConfig,
    "cluster": ClusterConfig,
    "run": RunConfig,
    "demo": DemoConfig,
    "data check": CheckConfig,
    "align": AlignConfig,
    "export": ExportConfig,
}
RUNNERS = {
    "pretrain": "facemetric.training.pretrain.pretrain",
    "finetune": "facemetric.training.finetune.finetune",
    "eval": "facemetric.commands.evaluating.eval.run_evaluate",
    "visualize": "facemetric.commands.visualize.run_visualize",
    "calibrate": "facemetric.commands.calibrate.run_calibrate",
    "verify": "facemetric.commands.verify.run_verify",
    "cluster": "facemetric.commands.clustering.cluster.run_cluster",
    "run": "facemetric.commands.run.run",
    "demo": "facemetric.commands.demo.run_demo",
    "data check": "facemetric.commands.checking.check.run_check",
    "align": "facemetric.commands.align.run_align",
    "export": "facemetric.commands.export.run_export",
}
OPTIONS = [(name, field.name) for name, kind in KINDS.items() for field in fields(kind) if field.name != "_"]


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[Any]]:
    """The configs that a command would have run with, whatever their files."""
    monkeypatch.setattr(cli, "check_words", lambda config: None)

    def catch(name: str) -> list[Any]:
        found: list[Any] = []

        @takes_options(KINDS[name])
        def keep(config: Any) -> Any:
            found.append(config)
            raise SystemExit(0)

        monkeypatch.setattr(RUNNERS[name], keep)
        return found

    return catch


def run(*tokens: str) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(tokens)
    assert not end.value.code


def another(kind: Any, name: str) -> Any:
    """A value of the option's type that is not its default."""
    default, hint = getattr(kind(), name), get_type_hints(kind)[name]
    if get_origin(hint) is not None and get_args(hint) and isinstance(get_args(hint)[0], str):
        return next(choice for choice in get_args(hint) if choice != default)
    if hint == tuple[str, ...] or name == "gallery":
        return ("a folder", "b.tar")
    if name == "fars":
        return (0.25, 1e-05)
    if name in ("freeze", "freeze_epochs"):
        return ("none", "batchnorm") if name == "freeze" else (3, 1)
    if name == "crop":
        return (0.1, 0.0, 0.25, 1e-05)
    if hint == tuple[float, ...]:
        return (0.25, 1e-05)
    if float in get_args(hint):
        return -0.25
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 3
    if isinstance(default, float):
        extras = getattr(get_type_hints(kind, include_extras=True)[name], "__metadata__", ())
        allowed = next((extra for extra in extras if isinstance(extra, Range)), Range())
        return default + 0.25 if default + 0.25 in allowed else default - 0.25
    return "ein Wörtchen" if isinstance(default, str) else Path("some/päth")


def flag(name: str, value: Any) -> list[str]:
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if isinstance(value, tuple) and name == "crop":
        return [f"--{dashed}", *map(str, value)]
    if isinstance(value, tuple):
        return [token for part in value for token in (f"--{dashed}", str(part))]
    return [f"--{dashed}", str(value)]


@pytest.mark.parametrize(("command", "name"), OPTIONS)
def test_flag_toml_key_and_python_argument_are_one(
    caught: Callable[[str], list[Any]], tmp_path: Path, command: str, name: str
) -> None:
    kind, found = KINDS[command], caught(command)
    value = another(kind, name)
    expected = make_config(kind, **{name: value})
    assert getattr(expected, name) == value != getattr(kind(), name)
    run(*command.split(), *flag(name, value))
    plain = str(value) if isinstance(value, Path) else value
    (tmp_path / "c.toml").write_text(f"{name} = {json.dumps(plain, ensure_ascii=False)}\n", encoding="utf-8")
    run(*command.split(), "--config", str(tmp_path / "c.toml"))
    assert found == [expected, expected]
    if command != "demo":
        function = {"eval": "evaluate", "data check": "check_data"}.get(command, command)
        with pytest.raises(SystemExit):
            getattr(facemetric, function)(**{name: list(plain) if isinstance(plain, tuple) else plain})
        assert found[2] == expected


@pytest.mark.parametrize("name", KINDS)
def test_the_command_of_a_config_makes_it_again(name: str, caught: Callable[[str], list[Any]]) -> None:
    kind = KINDS[name]
    changed = {field.name: another(kind, field.name) for field in fields(kind) if field.name != "_"}
    config = make_config(kind, **changed)
    found = caught(name)
    command = shlex.split(config_command(name, config).replace("\\\n", ""))
    assert command[0] == "facemetric"
    assert command[1 : 1 + len(name.split())] == name.split()
    run(*command[1:])
    assert found == [config]
    assert config_command(name, kind()) == f"facemetric {name}"


def test_the_text_of_an_option_is_one_line() -> None:
    """`--help` would keep the break and the indent."""
    for path in sorted(Path(options.__path__[0]).glob("*.py")):
        for kind in ast.parse(path.read_text()).body:
            body = kind.body if isinstance(kind, ast.ClassDef) else []
            for option, text in pairwise(body):
                if isinstance(option, ast.AnnAssign) and isinstance(text, ast.Expr):
                    assert "\n" not in ast.literal_eval(text.value), f"{path.name}:{text.lineno}"


@pytest.mark.parametrize("command", KINDS)
def test_help_names_every_option_with_a_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(*command.split(), "--help")
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for field in fields(KINDS[command]):
        if field.name not in ("_", "data"):
            assert f"--{field.name.replace('_', '-')}" in text
    said = {
        "pretrain": "Images: a folder of identity folders",
        "finetune": "What is not trained: backbone",
        "eval": "Folder for metrics.json",
        "visualize": "Most images in the projector",
        "calibrate": "Wanted share of pairs of two people",
        "verify": "Print one JSON object",
        "cluster": "Picture sheets to draw",
        "run": "Options in place of the recipe's",
        "demo": "People to draw",
        "align": "Folder for the crops",
        "export": "Folder for the file and export.json",
        "data check": "Picture sheets of each kind",
    }
    assert said[command] in text


@pytest.mark.parametrize("command", KINDS)
def test_a_written_config_reads_back(
    caught: Callable[[str], list[Any]], tmp_path: Path, command: str
) -> None:
    kind, found = KINDS[command], caught(command)
    full = make_config(kind, **{name: another(kind, name) for of, name in OPTIONS if of == command})
    for config in (kind(), full):
        (tmp_path / "c.toml").write_text(config_toml(config), encoding="utf-8")
        run(*command.split(), "--config", str(tmp_path / "c.toml"))
        anew = {"resume": False} if hasattr(config, "resume") else {}
        assert config_dict(found[-1]) == config_dict(config) | anew


def test_flags_win_over_the_file(caught: Callable[[str], list[Any]], tmp_path: Path) -> None:
    found = caught("pretrain")
    (tmp_path / "c.toml").write_text('epochs = 7\nlr = 0.5\ndata = ["from_file"]\n')
    run("pretrain", "from_flags", f"--config={tmp_path / 'c.toml'}", "--epochs", "9")
    assert (found[0].data, found[0].epochs, found[0].lr) == (("from_flags",), 9, 0.5)
    run("pretrain", "--epochs", "9")  # the file is not remembered
    assert found[1].lr == 0.1


def test_python_arguments_may_be_text() -> None:
    config = make_config(FinetuneConfig, "faces", out="runs/x", weights=Path("runs/y"), cache="c")
    assert (config.data, config.out) == (("faces",), Path("runs/x"))
    assert (config.weights, config.cache) == ("runs/y", Path("c"))
    assert make_config(EvalConfig, "w", data=[Path("a"), "b"]).data == ("a", "b")
    assert make_config(CalibrateConfig, "faces", far=1e-4).far == (1e-4,)
    assert make_config(CalibrateConfig, Path("faces"), far=[0.1, 0.01]).data == ("faces",)
    assert make_config(VerifyConfig, image1=Path("a.jpg"), far=1).image1 == "a.jpg"
    with pytest.raises(ConfigError, match="only data goes without its name; several of them go in one list"):
        make_config(PretrainConfig, "faces", "more faces")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PretrainConfig, {"epochs": "3"}, "epochs is '3'; needed is a whole number"),
        (PretrainConfig, {"epochs": 2.5}, "epochs is 2.5; needed is a whole number"),
        (PretrainConfig, {"lr": True}, "lr is True; needed is a number"),
        (PretrainConfig, {"resume": 1}, "resume is 1; needed is true or false"),
        (PretrainConfig, {"arch": 3}, "arch is 3; needed is text"),
        (PretrainConfig, {"out": 3}, "out is 3; needed is a path"),
        (PretrainConfig, {"crop": (0.1, 0.2)}, "needed are 4 numbers"),
        (FinetuneConfig, {"freeze": ["batchnorm", "non"]}, "unknown freeze 'non': did you mean 'none'"),
        (EvalConfig, {"fars": [0.1, "0.01"]}, "fars is '0.01'; needed is a number"),
    ],
)
def test_an_argument_of_another_type_is_named(kind: Any, options: dict[str, Any], message: str) -> None:
    make_config(PretrainConfig, lr=1, epochs=np.int64(3), val_identities=None, crop=[0, 0, 0, 0.5])
    with pytest.raises(ConfigError, match=message):
        make_config(kind, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze": ["batchnorm", "none"]}, "2 turns and --freeze-epochs 0 numbers; needed is one for each"),
        ({"freeze_epochs": [3]}, "1 turns and --freeze-epochs 1 numbers"),
        ({"freeze": ["batchnorm", "none"], "freeze_epochs": 5}, "adds up to 5 of 5 --epochs"),
        ({"freeze": ["batchnorm", "none"], "freeze_epochs": 0}, "each must be at least 1"),
        ({"freeze": []}, "--freeze is empty"),
        (
            {"augment_on": "device", "auto_augment": "3a"},
            "--auto-augment is for single pictures of the CPU, and --augment-on is device; leave out one",
        ),
        ({"compile": True}, "--compile is for a backbone that trains, and --freeze backbone runs it once"),
        ({"checkpoint_activations": True}, "--checkpoint-activations is for a backbone that trains"),
    ],
)
def test_what_is_frozen_in_turn_needs_its_epochs(options: dict[str, Any], message: str) -> None:
    known: dict[str, Any] = {"epochs": 5, "freeze": ("batchnorm", "none"), "freeze_epochs": 4}
    check_stage(make_config(FinetuneConfig, "faces", **known))
    with pytest.raises(ConfigError, match=message):
        check_stage(make_config(FinetuneConfig, "faces", epochs=5, **options))


@pytest.mark.parametrize("init", ["pca", "lda", "random"])
def test_a_new_projection_needs_a_size(init: str) -> None:
    check_stage(make_config(FinetuneConfig, "faces", embedding_size=0))
    with pytest.raises(ConfigError, match="--embedding-size is 0, and --projection-init"):
        check_stage(make_config(FinetuneConfig, "faces", embedding_size=0, projection_init=init))


def test_an_argument_goes_once() -> None:
    with pytest.raises(ConfigError, match="data is given twice"):
        make_config(PretrainConfig, "faces", data="others")


def test_every_number_can_be_written() -> None:
    config = make_config(
        PretrainConfig, "faces", epochs=np.int64(3), lr=np.float32(0.5), checkpoint_minutes=float("inf")
    )
    found = tomllib.loads(config_toml(config))
    assert (found["epochs"], found["lr"], found["checkpoint_minutes"]) == (3, 0.5, float("inf"))


def test_a_misspelt_argument_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'epoch': did you mean 'epochs'"):
        make_config(PretrainConfig, epoch=3)
    with pytest.raises(ConfigError, match="unknown amp 'bfloat61': did you mean 'bfloat16'"):
        make_config(PretrainConfig, amp="bfloat61")


@pytest.mark.parametrize(
    ("options", "flag_named"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 1}, "--batch-size"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"workers": -2}, "--workers"),
        ({"max_bad": 1.1}, "--max-bad"),
        ({"dropout": -0.1}, "--dropout"),
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"hflip": float("nan")}, "--hflip"),
        ({"lr": 0.0}, "--lr"),
        ({"lr": float("inf")}, "--lr"),
        ({"momentum": -0.1}, "--momentum"),
        ({"data": ()}, "no DATA"),
        ({"val_by": "images", "val_identities": "names.txt"}, "one of --val-identities and --val-by images"),
    ],
)
def test_numbers_out_of_their_range_are_named(options: dict[str, Any], flag_named: str) -> None:
    check_stage(PretrainConfig(("faces",)))
    with pytest.raises(ConfigError, match=flag_named):
        check_stage(make_config(PretrainConfig, **{"data": ("faces",)} | options))
