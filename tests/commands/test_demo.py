"""The demo: people never seen, and three commands that tell the story again."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from facemetric import cli
from facemetric.commands.demo import (
    claim_folder,
    draw_data,
    draw_sets,
    draw_test_pairs,
    run_demo,
    verdict,
)
from facemetric.config import DemoConfig, config_dict
from facemetric.config.build import read_toml
from facemetric.data.index import read_index
from facemetric.data.pairs import read_pairs
from facemetric.errors import ConfigError


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Any]:
    """(folder, what was printed, the evaluation) of the smallest demo."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as monkeypatch:
        said: list[str] = []
        monkeypatch.setattr("facemetric.commands.demo.say", lambda *lines: said.extend(lines))
        found = run_demo(DemoConfig(out, identities=20, images=4, epochs=1, device="cpu"))
    return out, "\n".join(said), found


def test_the_people_of_the_evaluation_were_never_trained_on(story: tuple[Path, str, Any]) -> None:
    out, _, found = story
    train, test = read_index([str(out / "faces")]), read_index([str(out / "faces_never_seen")])
    assert (len(train.identities), len(test.identities)) == (16, 4)
    assert not set(train.identities) & set(test.identities)
    pairs = read_pairs(out / "pairs.csv")
    assert pairs.fold is not None
    people = {path.split("/")[-2] for path in pairs.paths()}
    assert people == set(test.identities)
    # No person is in two folds.
    for fold in set(pairs.fold.tolist()):
        rows = [i for i in range(len(pairs)) if pairs.fold[i] == fold]
        here = {paths[i].split("/")[-2] for i in rows for paths in (pairs.paths_a, pairs.paths_b)}
        assert here <= people
        people -= here
    assert pairs.same.sum() * 2 == len(pairs)
    assert found.verification.n_genuine == pairs.same.sum()


def test_it_writes_what_it_says(story: tuple[Path, str, Any]) -> None:
    out, said, found = story
    for path in ("faces", "faces_never_seen", "pairs.csv", "pretrain", "finetune", "eval"):
        assert (out / path).exists()
        assert f"  {out / path}\n" in said
    for name in ("metrics.json", "roc.csv", "roc.png"):
        assert (out / "eval" / name).stat().st_size > 0
    metrics = json.loads((out / "eval" / "metrics.json").read_text())
    assert metrics["verification"]["auc"] == pytest.approx(found.verification.auc)


def test_the_commands_it_prints_are_those_it_ran(
    story: tuple[Path, str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, said, found = story
    begun = [line[2:] for line in said.splitlines() if line.startswith("$ ")]
    ended = [line.strip() for line in said.splitlines()[-3:]]
    assert begun == ended
    configs: list[Any] = []
    for runner in (
        "facemetric.training.pretrain.pretrain",
        "facemetric.training.finetune.finetune",
        "facemetric.commands.evaluating.eval.run_evaluate",
    ):
        monkeypatch.setattr(runner, lambda config: configs.append(config) or found)
    monkeypatch.setattr(
        "facemetric.cli_words.check_run_folder", lambda *_: None
    )  # the runs are there already
    for line in ended:
        program, *words = shlex.split(line)
        assert program == "facemetric"
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert not end.value.code
    for config, folder in zip(configs[:2], ("pretrain", "finetune"), strict=True):
        ran = config_dict(config)
        assert ran.pop("resume") is False
        assert ran == read_toml(out / folder / "config.toml")
    options = json.loads((out / "eval" / "metrics.json").read_text())["options"]
    assert config_dict(configs[2]) == options


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty; name another --out, or remove it"):
        run_demo(DemoConfig(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_same_seed_draws_the_same_people(tmp_path: Path) -> None:
    marks = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = DemoConfig(tmp_path / name, identities=20, images=2, seed=seed)
        _, test = draw_sets(config)
        index = read_index([str(test)])
        pairs = draw_test_pairs(test, tmp_path / name / "pairs.csv", seed).read_bytes()
        marks.append((index.read(0), pairs))
    assert marks[0] == marks[1]
    assert marks[0][0] != marks[2][0]


def test_a_demo_that_was_stopped_goes_on_and_no_other_does(tmp_path: Path) -> None:
    config = DemoConfig(tmp_path / "demo", identities=20, images=2)
    claim_folder(config)
    train, test, pairs = draw_data(config)
    before = (pairs.read_bytes(), sorted(train.iterdir())[0].stat().st_mtime_ns)
    with pytest.raises(ConfigError, match="holds a demo; go on with it by --resume, or name another --out"):
        claim_folder(config)
    again = replace(config, resume=True)
    claim_folder(replace(again, device="cpu", out=Path(os.path.relpath(again.out))))
    claim_folder(again)
    assert draw_data(again) == (train, test, pairs)
    assert before == (pairs.read_bytes(), sorted(train.iterdir())[0].stat().st_mtime_ns)
    with pytest.raises(ConfigError, match=r"other options \(images 2 -> 3\); name another --out"):
        claim_folder(replace(again, images=3))
    pairs.unlink()  # it was stopped while it drew: all is drawn again
    draw_data(again)
    assert pairs.read_bytes() == before[0]
    with pytest.raises(ConfigError, match="holds no demo to resume; start without --resume"):
        claim_folder(replace(again, out=tmp_path / "nowhere"))


def test_it_ends_with_a_verdict(story: tuple[Path, str, Any]) -> None:
    assert "did NOT learn" in verdict(0.52)
    assert "but not well" in verdict(0.7)
    assert (
        verdict(0.95) == "verdict: the model tells people whom it never saw apart (AUC 0.950, chance is 0.5)"
    )
    _, said, found = story
    assert verdict(found.verification.auc) in said
