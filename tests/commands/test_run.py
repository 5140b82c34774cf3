"""`facemetric run`: stages in sequence, weights handed on, settings that share what they can, resuming."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from facemetric.commands import run as recipe
from facemetric.config import RunConfig, check_stage, plan
from facemetric.config.recipe import parse_values
from facemetric.errors import ConfigError, FacemetricError, TrainingError
from facemetric.training.run.folder import LOG
from facemetric.training.stage import check_training, start_embedder

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(path for path in CONFIGS.glob("*.toml") if "[pretrain]" in path.read_text())
assert len(RECIPES) >= 6
RECIPE = """
data = ["FACES"]
batch_size = 16
device = "cpu"
workers = 0

[pretrain]
arch = "test_resnet"
image_size = 32
epochs = 1

[finetune]
embedding_size = 8
projection_init = "random"
epochs = 2
batch_size = 32

[eval]
data = ["FACES"]
"""


@pytest.fixture
def toml(faces: Path, tmp_path: Path) -> Path:
    path = tmp_path / "faces.toml"
    path.write_text(RECIPE.replace("FACES", str(faces)))
    return path


def planned(toml: Path, *settings: str) -> list[dict[str, Any]]:
    """The configs of each variant by the step's name."""
    variants = plan(RunConfig(toml, set=settings, out=Path("out")))
    return [{step.name: step.config for step in variant.steps} for variant in variants]


def test_tables_hand_on_weights_and_share_the_keys_above_them(toml: Path, faces: Path) -> None:
    (steps,) = planned(toml)
    assert list(steps) == ["pretrain", "finetune", "eval_pretrain", "eval_finetune"]
    one, two = steps["pretrain"], steps["finetune"]
    assert one.data == two.data == (str(faces),)
    assert (one.batch_size, two.batch_size, one.epochs, two.epochs) == (16, 32, 1, 2)
    assert (one.out, two.weights) == (Path("out/pretrain"), "out/pretrain")
    assert [steps[f"eval_{name}"].weights for name in ("pretrain", "finetune")] == [
        "out/pretrain",
        str(two.out),
    ]
    assert steps["eval_pretrain"].device == "cpu"
    assert steps["eval_pretrain"].batch_size == 256  # training's is not eval's


def test_settings_make_runs_that_share_what_they_do_not_reach(toml: Path) -> None:
    runs = planned(
        toml, "finetune.margin=0.5,1", "finetune.miner=all,hard", "pretrain.lr=0.2", "eval.flip=true,false"
    )
    assert len(runs) == 8
    found = [(run["finetune"].margin, run["finetune"].miner, run["eval_finetune"].flip) for run in runs]
    assert found[:3] == [(0.5, "all", True), (0.5, "all", False), (0.5, "hard", True)]
    assert {run["pretrain"].out for run in runs} == {Path("out/pretrain")}
    assert {run["pretrain"].lr for run in runs} == {0.2}
    assert len({run["finetune"].out for run in runs}) == 4
    assert len({run["eval_pretrain"].out for run in runs}) == 2
    assert runs[0]["finetune"].out == Path("out/finetune.margin=0.5,finetune.miner=all/finetune")
    assert {run["finetune"].cache for run in runs} == {Path("out/features")}
    both = planned(toml, "seed=1,2")
    assert [run["finetune"].weights for run in both] == ["out/seed=1/pretrain", "out/seed=2/pretrain"]


def test_a_setting_without_its_table(toml: Path) -> None:
    assert [run["finetune"].margin for run in planned(toml, "finetune.margin=1,3")] == [1, 3]
    with pytest.raises(ConfigError, match=r"\[pretrain\] and \[finetune\] have it; write finetune.margin"):
        planned(toml, "margin=1")
    toml.write_text(toml.read_text().replace("[finetune]", "[finetune]\nmargin = 0.3"))
    assert [run["finetune"].margin for run in planned(toml, "margin=1,3")] == [1, 3]  # the recipe's own key
    assert planned(toml, "miner=hard")[0]["finetune"].miner == "hard"
    toml.write_text(toml.read_text().replace("[finetune]", "[finetune]\nhflip = 0.1"))
    (steps,) = planned(toml, "hflip=0.3")  # both stages can have it; the recipe has it in one
    assert (steps["pretrain"].hflip, steps["finetune"].hflip) == (0.5, 0.3)


def test_values_are_toml_or_words() -> None:
    assert parse_values("0.5,1,3") == (0.5, 1, 3)
    assert parse_values("all,hard") == ("all", "hard")
    assert parse_values("true,1e-3,lcnet_050") == (True, 1e-3, "lcnet_050")
    assert parse_values('["a", "b"],["c"]') == (["a", "b"], ["c"])


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (("[eval]", "[evaluate]"), (), r"unknown table \[evaluate\]: did you mean 'eval'"),
        (
            ("workers =", "worker ="),
            (),
            "above the tables there is no option 'worker': did you mean 'workers'",
        ),
        (("arch =", "archi ="), (), r"\[pretrain\] has no option 'archi': did you mean 'arch'"),
        (("epochs = 2", 'epochs = "2"'), (), r"\[finetune\]: epochs is '2'; needed is a whole number"),
        (("epochs = 2", "out = 'x'"), (), "out is not for a recipe; give out= to facemetric run"),
        (("epochs = 2", "miner ="), (), "is not TOML"),
        (("", ""), ("finetune.lr",), "needed is TABLE.KEY=VALUE"),
        (("", ""), ("tune.lr=1",), r"no table \[tune\]"),
        (("", ""), ("finetune.lrr=1",), r"\[finetune\] has no option 'lrr': did you mean 'lr'"),
        (("", ""), ("lrr=1",), "unknown option: did you mean 'lr'"),
        (("", ""), ("finetune.lr=fast",), r"\[finetune\]: lr is 'fast'; needed is a number"),
        (("", ""), ("finetune.epochs=0",), "epochs is 0; it must be at least 1"),
        (("", ""), ("eval.data=nowhere",), r"\[eval\] data: nowhere: no such file or folder"),
        (("", ""), ("eval.pairs=nowhere",), r"\[eval\] pairs: nowhere: no such file"),
        (("", ""), ("eval.embeddings=nowhere.npz",), r"\[eval\] embeddings: nowhere.npz: no such file"),
        (
            ("", ""),
            ("finetune.alike=2", "finetune.families=nowhere"),
            r"\[finetune\] families: nowhere: no such file",
        ),
        (("", ""), ("eval.compare=nowhere",), "no weights at 'nowhere'"),
        (
            ("", ""),
            ("pretrain.unlabelled=nowhere", "pretrain.teacher=nowhere.npz"),
            r"\[pretrain\] unlabelled: nowhere: no such file or folder",
        ),
        (("", ""), ("pretrain.teacher=a=nowhere.npz",), r"\[pretrain\] teacher: a=nowhere.npz: no such file"),
        (("", ""), ("pretrain.teacher=nowhere",), "no weights at 'nowhere'"),
        (("", ""), ("finetune.weights=nowhere",), "no weights at 'nowhere'"),
        (("", ""), ("finetune.miner=semihrad",), "unknown miner 'semihrad': did you mean 'semihard'"),
        (("", ""), ("optimizer=adamv",), "unknown optimizer 'adamv': did you mean 'adam"),
        (("", ""), ("finetune.scheduler=cosin",), "'cosin'.*did you mean 'cosine'"),
        (("", ""), ("finetune.auto_augment=rnd-m9",), "rnd-m9"),
        (("", ""), ("finetune.crop=[0.5,0.5,0.5,0.5]",), "opposite ones sum to below 1"),
        (("", ""), ("finetune.batch_size=4",), "batch_size=4 holds 1 identity of 4 images"),
        (("", ""), ("finetune.microbatch=1",), "microbatch is 1; a batch norm needs two images"),
        (("", ""), ("pretrain.arch=resnet19",), "timm has no architecture 'resnet19': did you mean"),
        (("[eval]", "[visualize]\nimages = 1\n[eval]"), (), "images is 1; it must be at least 2"),
        (
            ("", ""),
            ("batch_size=8",),
            r"above the tables and \[finetune\] have it; write finetune.batch_size",
        ),
        (("", ""), ("epochs=3",), r"\[pretrain\] and \[finetune\] have it; write finetune.epochs"),
        (("", ""), ("pretrain.lr=0.1,0.2", "pretrain.lr=0.3"), "set='pretrain.lr' is given twice"),
    ],
)
def test_a_fault_is_said_before_anything_runs(
    toml: Path, tmp_path: Path, change: tuple[str, str], settings: tuple[str, ...], message: str
) -> None:
    toml.write_text(toml.read_text().replace(*change, 1))
    with pytest.raises(FacemetricError, match=message):
        recipe.run(toml, set=settings, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_that_come_with_it(path: Path) -> None:
    """Each option is known, each number in its range, and timm builds the network."""
    (variant,) = plan(RunConfig(path))
    first = variant.steps[0].config
    for step in variant.steps:
        if step.stage in ("pretrain", "finetune"):
            check_stage(step.config)
    assert {step.stage for step in variant.steps} >= {"pretrain", "finetune", "eval"}
    assert start_embedder(check_training(first)).preprocess.size == (first.image_size, first.image_size)
    assert first.hflip == (0.5 if "fashion" in path.stem or "cifar" in path.stem else 0.0)
    told = [line for line in path.read_text().splitlines() if line.startswith("#   facemetric run")]
    assert told[0].split()[3] == f"configs/{path.name}"


def test_a_run_leaves_its_stages_and_a_table(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    table = recipe.run(
        toml, set=["finetune.margin=0.01,3", "finetune.miner=all", "finetune.distance=euclidean"], out=out
    )
    assert table["stage"].tolist() == ["pretrain", "finetune", "finetune"]
    assert table["finetune.margin"].tolist()[1:] == ["0.01", "3"]
    assert table["train_fraction_positive"].tolist()[2] == 1.0  # no distance on the sphere reaches 3
    assert table["train_fraction_positive"].tolist()[1] < 1.0
    # of the training, though it did not help and stage one's weights are kept
    log = (out / "finetune.margin=3" / "finetune" / LOG).read_text().splitlines()
    last = [line for line in map(json.loads, log) if line["event"] == "validation"][-1]
    assert (table["val_fraction_positive"][2], table["val_loss"][2]) == (1.0, last["val_loss"])
    # eval's figures are of the weights of their own row
    for folder, row in (("eval_pretrain", 0), ("finetune.margin=3/eval_finetune", 2)):
        found = json.loads((out / folder / "metrics.json").read_text())["neighbours"]["knn_accuracy_1"]
        assert table["neighbours_knn_1"][row] == found
    assert (table["memory_mib"] > 50).all()
    assert pd.read_csv(out / "table.csv")["val_knn_accuracy"].tolist() == table["val_knn_accuracy"].tolist()
    assert "train_fraction_positive" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="holds a run already; go on with it by resume=True"):
        recipe.run(toml, out=out)
    with pytest.raises(ConfigError, match=r"other options \(lr 0.1 -> 0.3\); name another out="):
        recipe.run(toml, out=out, set=["pretrain.lr=0.3"], resume=True)
    record = json.loads((out / "pretrain" / "run.json").read_text())
    del record["options"]["case_twins"]  # as before there was such an option
    (out / "pretrain" / "run.json").write_text(json.dumps(record))
    monkeypatch.setitem(recipe.RUNNERS, "pretrain", lambda config: pytest.fail("it was done before"))
    again = recipe.run(toml, set=["finetune.margin=3", "finetune.miner=all"], out=out, resume=True)
    assert again["stage"].tolist() == ["pretrain", "finetune"]


def test_a_stage_that_failed_before_its_first_step_takes_other_options(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: Any) -> None:
        config.out.mkdir(parents=True, exist_ok=True)
        raise TrainingError("the disk is full")

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setitem(recipe.RUNNERS, "finetune", full)
        with pytest.raises(TrainingError, match="the disk is full"):
            recipe.run(toml, out=out)
    table = recipe.run(toml, out=out, resume=True, set=["finetune.lr=0.01", "workers=1"])
    assert table["stage"].tolist() == ["pretrain", "finetune"]
    assert json.loads((out / "finetune" / "run.json").read_text())["options"]["lr"] == 0.01


def test_a_recipe_of_pictures_alone(tmp_path: Path) -> None:
    recipe_file, table = tmp_path / "pictures.toml", tmp_path / "table.npz"
    names = np.array([f"p{i // 2}" for i in range(20)])
    emb_ND = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    np.savez(table, embeddings=emb_ND, identities=names, paths=np.array([f"{i}.jpg" for i in range(20)]))
    recipe_file.write_text(f"[visualize]\nembeddings = '{table}'\n")
    assert recipe.run(recipe_file, out=tmp_path / "out").empty
    assert (tmp_path / "out" / "visualize" / "projector_config.pbtxt").is_file()


def test_a_run_that_stopped_goes_on(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in stage two, once before and once after its first checkpoint; stage one is not run again."""
    whole = recipe.run(toml, out=tmp_path / "whole")
    steps = 0

    def stopping(at: int) -> Any:
        def step(self: Any, *rest: Any) -> dict[str, float]:
            nonlocal steps
            steps += 1
            if steps == at:
                raise TrainingError("the power went")
            return kept(self, *rest)

        return step

    from facemetric.training.tasks.on_features import OnFeatures

    kept, out = OnFeatures.step, tmp_path / "out"
    for at in (1, 4):
        steps = 0
        monkeypatch.setattr(OnFeatures, "step", stopping(at))
        with pytest.raises(TrainingError, match="the power went"):
            recipe.run(toml, out=out, resume=at > 1)
        assert (out / "finetune" / LOG).stat().st_size > 0
    monkeypatch.setattr(OnFeatures, "step", kept)
    first = (out / "pretrain" / "run.json").read_text()
    went_on = recipe.run(toml, out=out, resume=True)
    assert (out / "pretrain" / "run.json").read_text() == first
    figures = [name for name in whole if name not in ("minutes", "memory_mib")]
    pd.testing.assert_frame_equal(went_on[figures], whole[figures])
    record = json.loads((out / "finetune" / "run.json").read_text())
    assert record["done"]
    assert record["minutes"] > 0


def test_a_dry_run_tries_every_stage_and_leaves_nothing(
    toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(recipe, "TRIAL_STEPS", 3)
    before = {path for path in toml.parent.rglob("*") if path != temporary}
    out = tmp_path / "out"
    table = recipe.run(toml, out=out, dry=True, set=["finetune.margin=0.1,0.2"])
    shown = capsys.readouterr().out
    assert table["stage"].tolist() == ["pretrain", "finetune", "finetune"]
    assert table["neighbours_knn_1"].notna().all()
    assert (table["minutes"] > 0).all()
    for stage in ("pretrain", "eval_pretrain", "finetune", "eval_finetune"):
        assert f"{stage}: " in shown or f"/{stage}\n" in shown
    assert "--max-steps: 3 of 5 steps are done; the rest would take about" in shown
    assert len(re.findall(r"--max-steps: 3 of \d+ steps are done", shown)) == 3
    assert "neighbours_knn_1" in shown
    assert shown.endswith("a trial of at most 3 steps of each training; nothing of it was kept\n")
    assert not out.exists()
    assert not list(temporary.iterdir())
    assert {path for path in toml.parent.rglob("*") if path != temporary} == before
    with pytest.raises(ConfigError, match="epochs is 0"):
        recipe.run(toml, out=out, dry=True, set=["pretrain.epochs=0"])
    assert not list(temporary.iterdir())


def test_a_dry_run_is_short_whatever_the_recipe_asks_for(
    toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key of one table would keep a setting above the tables from the other, or be given twice."""
    toml.write_text(toml.read_text().replace("[finetune]", "[finetune]\nmax_steps = 500"))
    ran: dict[str, Any] = {}

    def stage(config: Any) -> dict[str, float]:
        ran.setdefault(config.out.name, []).append(getattr(config, "max_steps", None))
        return {}

    for name in recipe.RUNNERS:
        monkeypatch.setitem(recipe.RUNNERS, name, stage)
    recipe.run(toml, out=tmp_path / "out", dry=True)
    recipe.run(
        toml, out=tmp_path / "out", dry=True, set=["pretrain.max_steps=7", "finetune.max_steps=30,600"]
    )
    assert ran["pretrain"] == [20, 7]
    assert ran["finetune"] == [20, 20, 20]
    assert ran["eval_finetune"] == [None] * 3
    assert not (tmp_path / "out").exists()
