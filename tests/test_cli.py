"""The commands as a user types them: what goes wrong is one line on stderr and exit status 2."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from facemetric import cli, pretrain
from facemetric.errors import DataError

TUNE = ["--epochs", "1", "--batch-size", "16", "--workers", "0", "--device", "cpu"]
FAST = ["--arch", "test_resnet", "--image-size", "32", *TUNE]


class Ran(NamedTuple):
    """What a command left behind."""

    status: Any
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line that a failed command ends with; fails where there is more or less than that."""
        assert self.status == 2
        assert "Traceback" not in self.err
        pieces = re.split(r"[\r\n]|\x1b\[A", self.err)
        lines = [piece for piece in pieces if piece.strip() and "%|" not in piece]  # no progress bars
        assert len(lines) == 1, lines
        assert lines[0].startswith("facemetric: ")
        assert self.err.endswith("\n")
        return lines[0]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run a command in this process."""

    def run(*tokens: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(token) for token in tokens])
        return Ran(caught.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def weights(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a stage one."""
    out = tmp_path_factory.mktemp("cli") / "run"
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "workers": 0, "device": "cpu"}
    pretrain(str(faces), arch="test_resnet", image_size=32, out=out, **options)
    return out


@pytest.fixture
def people(faces: Path, tmp_path: Path) -> Path:
    """Eight of the drawn identities, to be damaged at will."""
    for folder in sorted(faces.iterdir())[:8]:
        shutil.copytree(folder, tmp_path / "people" / folder.name)
    return tmp_path / "people"


def images_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Words


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pretrian FACES", 'Unknown command "pretrian". Did you mean "pretrain"?'),
        ("pretrain FACES --archh x", "Unknown option: --archh. Did you mean --arch?"),
        ("pretrain FACES --head arcfase", "unknown head 'arcfase': did you mean 'arcface'"),
        ("pretrain FACES --amp bfloat61", 'Did you mean "bfloat16"?'),
        ("pretrain FACES --epochs many", 'unable to convert "many" into int'),
        ("pretrain FACES --epochs 0", "--epochs is 0; it must be at least 1"),
        ("pretrain FACES --max-bad 2", "--max-bad is 2.0; it is a share, choose 0..1"),
        ("pretrain FACES --workers -2", "--workers is -2; it must be at least -1"),
        ("pretrain FACES --device gpu", "unknown device 'gpu': did you mean 'cpu'?"),
        ("pretrain FACES --arch mobilenetv4_conv_smal", "did you mean 'mobilenetv4_conv_small"),
        ("pretrain FACES --optimizer adamv", "unknown optimizer 'adamv': did you mean 'adam"),
        ("pretrain FACES --scheduler cosin", "'cosin'"),
        ("pretrain FACES --crop 0.6 0.6 0.6 0.6", "crop is (0.6, 0.6, 0.6, 0.6)"),
        ("pretrain FACES --val-identities NOWHERE", "No such file"),
        ("pretrain FACES --resume", "holds no checkpoint to resume; start without --resume"),
        ("pretrain FACES --config NOWHERE", "--config NOWHERE: No such file"),
        ("pretrain FACES --config", "--config needs a TOML file"),
        ("pretrain", "no DATA was given"),
        ("pretrain NOWHERE", "NOWHERE: no such file or folder"),
        ("pretrain FACES NOWHERE", "NOWHERE: no such file or folder"),
        ("finetune FACES", "no weights were given"),
        ("finetune FACES --weights NOWHERE", "no weights at 'NOWHERE'"),
        ("finetune FACES --weights FACES", "holds no config.json"),
        ("finetune FACES --weights RUN --miner semi-hard", "did you mean 'semihard'?"),
        ("finetune FACES --weights RUN --miner nowhere:mine", "nowhere does not import"),
        ("finetune FACES --weights RUN --miner math:mine", "no function 'mine'"),
        ("finetune FACES --weights RUN --distance squarred", 'Did you mean "squared"?'),
        ("finetune FACES --weights RUN --batch-size 4", "two are needed: raise --batch-size"),
        ("finetune FACES --weights RUN --projection-init lda", "lda gives at most 13 directions"),
        ("eval", "give one of --weights and --embeddings"),
        ("eval --weights RUN --embeddings RUN --data FACES", "give one of --weights and --embeddings"),
        ("eval --weights RUN", "nothing to score: give --pairs or --data"),
        ("eval --weights RUN --pairs NOWHERE", "NOWHERE: no such pairs file"),
        ("eval --weights RUN --data NOWHERE", "NOWHERE: no such file or folder"),
        ("eval --weights RUN --data FACES --folds 1", "--folds is 1"),
        ("eval --weights RUN --data FACES --batch-size 0", "--batch-size is 0"),
        ("eval --embeddings NOWHERE.npz", "NOWHERE.npz"),
        ("calibrate --weights RUN", "no DATA was given; name images of people"),
        ("calibrate FACES", "no weights were given"),
        ("calibrate FACES --weights RUN --far 0", "--far is 0.0; it is a share above 0"),
        ("calibrate FACES --weights RUN --far 1e-9", "FAR 1e-09 needs 1,000,000,000 impostor pairs"),
        ("calibrate FACES --weights RUN --max-bad 2", "--max-bad is 2.0; it is a share, choose 0..1"),
        ("calibrate FACES --weights RUN --identities NOWHERE", "NOWHERE: cannot be read"),
        ("verify --weights RUN", "verify needs two images: facemetric verify A.jpg B.jpg --weights W"),
        ("verify A.jpg B.jpg", "no weights were given"),
        ("verify IMAGE IMAGE --weights RUN --far 1e-9", "make one with `facemetric calibrate DATA --weights"),
        ("verify A.jpg B.jpg --weights RUN --far 0.1", "A.jpg: no such file; give an image"),
        ("cluster", "nothing to group: name images, or give --embeddings"),
        ("cluster FACES", "no threshold: give --weights"),
        (
            "cluster FACES --weights RUN --far 1e-9",
            "holds no threshold for FAR 1e-09; it has those for FAR 0.1",
        ),
        ("cluster FACES --weights RUN --method dbscn", 'Did you mean "dbscan"?'),
        ("cluster NOWHERE --weights RUN --threshold 0.5", "NOWHERE: no such file or folder"),
        (
            "cluster FACES --weights RUN --threshold 0.5 --min-images 0",
            "--min-images is 0; it must be at least 1",
        ),
        ("data check", "no DATA was given"),
        ("data chekc FACES", 'Did you mean "check"?'),
        ("data check FACES --against NOWHERE", "NOWHERE: no such file or folder"),
        ("data check FACES --chance 2", "--chance is 2.0; it is a share, choose 0..1"),
        ("data check FACES --weights NOWHERE", "no weights at 'NOWHERE'"),
        ("data check FACES --config NOWHERE", "--config NOWHERE: No such file"),
        ("pretrain FACES --loss x", "--loss. Did you mean --head in pretrain, --miner in finetune?"),
        ("pretrain FACES --head arcface --scale 0", "--scale is 0.0; it must be above 0"),
        ("verify a b --far 0", "--far is 0.0; it is a share above 0, such as 1e-3"),
        ("cluster FACES --far 2", "--far is 2.0; it is a share above 0, such as 1e-3"),
        ("export faces-112 --side 4", "--side is 4; it must be at least 8"),
        ("pretrain FACES --learning-rate 1", "Unknown option: --learning-rate. Did you mean --lr?"),
        ("pretrain FACES --val-fraction nan", "--val-fraction is nan; it is a share, choose 0..1"),
        ("pretrain FACES --lr inf", "--lr is inf; it must be above 0, and finite"),
        ("eval FACES --weights RUN", "images go to --data, pairs to --pairs: facemetric eval --weights W"),
        ("verify RUN A.jpg B.jpg", "the weights go to --weights: facemetric verify A.jpg B.jpg --weights W"),
        ("verify FACES A.jpg --weights RUN", "is a folder; verify compares two image files"),
        ("demo --identities 3", "--identities is 3; it must be at least 20"),
        ("demo --out FACES", "is not empty; name another --out"),
    ],
)
def test_what_is_misspelt_or_missing(
    command: Callable[..., Ran], faces: Path, weights: Path, tmp_path: Path, line: str, message: str
) -> None:
    names = {"FACES": faces, "RUN": weights, "IMAGE": images_in(faces)[0]}
    words = [names.get(word, word) for word in line.split()]
    if words[0] not in ("pretrian", "data", "demo", "verify") and "--out" not in words:
        words[1:1] = ["--out", tmp_path / "out"]
    if words[:2] == ["data", "check"]:
        words += ["--out", tmp_path / "out"]
    assert message in command(*words).fault


def test_a_failed_start_is_mended_in_the_same_folder(
    command: Callable[..., Ran], faces: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "out"]
    assert command("pretrain", faces / "nowhere", *out, *FAST).status == 2
    assert command("pretrain", faces, *out, *FAST).status == 0
    assert "already holds a run" in command("pretrain", faces, *out, *FAST).fault
    assert command("pretrain", faces, *out, *FAST, "--resume").status == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("archh = 'x'\n", "Did you mean --arch?"),
        ("epochs = 'many'\n", 'unable to convert "many" into int'),
        ("epochs =\n", "is not TOML"),
        ("amp = 'bfloat61'\n", 'Did you mean "bfloat16"?'),
        (
            "lr = 1\n[pretrain]\n",
            "c.toml is a recipe, with the table [pretrain]; run it with `facemetric run",
        ),
    ],
)
def test_a_config_file_with_a_fault(
    command: Callable[..., Ran], faces: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    fault = command("pretrain", faces, "--out", tmp_path / "out", "--config", tmp_path / "c.toml").fault
    assert message in fault
    assert "c.toml" in fault


def test_a_config_file_that_is_no_text(command: Callable[..., Ran], faces: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "is not TOML" in command("pretrain", faces, "--config", tmp_path / "c.toml").fault


# Images


def damage(people: Path) -> dict[str, str]:
    """Damage three images; returns what is to be said of each."""
    empty, cut, text = images_in(people)[2:9:3]
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_text("this is no picture")
    return {f"{path.parent.name}/{path.name}": path.name for path in (empty, cut, text)}


def listed(out: Path) -> dict[str, str]:
    with open(out / "bad_images.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def test_bad_images_are_listed_and_the_training_goes_on(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    bad = damage(people)
    options = ["--max-bad", 0.5, "--val-fraction", 0, "--closed-set-fraction", 0]
    ran = command("pretrain", people, "--out", tmp_path / "one", *FAST, *options)
    assert ran.status == 0
    assert listed(tmp_path / "one").keys() <= bad.keys()  # one may be in no batch
    assert len(listed(tmp_path / "one")) >= 2
    tune = ["--weights", weights, "--out", tmp_path / "two", *TUNE, "--max-bad", 0.5, "--val-fraction", 0]
    assert command("finetune", people, *tune).status == 0
    reasons = listed(tmp_path / "two")
    assert reasons.keys() == bad.keys()
    assert len(set(reasons.values())) == 3
    score = ["--weights", weights, "--out", tmp_path / "eval", "--max-bad", 0.5]
    ran = command("eval", "--data", people, *score)
    assert ran.status == 0
    assert listed(tmp_path / "eval") == reasons
    assert "3 of 48 images cannot be read" in ran.out


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "finetune none", "eval"])
def test_above_the_share_of_bad_images_the_job_stops(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path, stage: str
) -> None:
    bad, out = damage(people), ["--out", tmp_path / "out"]
    if stage == "pretrain":
        ran = command("pretrain", people, *out, *FAST)
    elif stage == "eval":
        ran = command("eval", "--data", people, "--weights", weights, *out)
    else:
        freeze = ["--freeze", "none"] if stage.endswith("none") else []
        ran = command("finetune", people, *out, "--weights", weights, *TUNE, *freeze)
    assert "48 images are bad, above the share of" in ran.fault
    assert "raise --max-bad" in ran.fault
    assert listed(tmp_path / "out").keys() <= bad.keys()


def test_layouts_that_cannot_be_trained_on(command: Callable[..., Ran], people: Path, tmp_path: Path) -> None:
    def fault(*data: object) -> str:
        return command("pretrain", *data, "--out", tmp_path / "out", *FAST).fault

    (tmp_path / "empty").mkdir()
    assert "holds no image of an identity; needed is identity/image.jpg" in fault(tmp_path / "empty")
    one = sorted(people.iterdir())[0]
    shutil.copytree(one, tmp_path / "one" / one.name)
    assert "1 identity with images" in fault(tmp_path / "one")
    shutil.copytree(one, people / one.name.swapcase())
    assert "1 pair of identities that differ in letter case alone" in fault(people)
    (tmp_path / "a.txt").write_text("x")
    assert "unknown kind of data" in fault(tmp_path / "a.txt")
    (tmp_path / "columns.csv").write_text("file,person\na.jpg,b\n")
    assert "path" in fault(tmp_path / "columns.csv")
    (tmp_path / "paths.csv").write_text("path,identity\nnowhere/1.png,a\nnowhere/2.png,b\n")
    assert "nowhere/1.png" in fault(tmp_path / "paths.csv")


def test_tars_that_cannot_be_trained_on(command: Callable[..., Ran], people: Path, tmp_path: Path) -> None:
    def fault(data: Path) -> str:
        return command("pretrain", data, "--out", tmp_path / "out", *FAST).fault

    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(people, arcname=".")
    assert command("pretrain", tmp_path / "whole.tar", "--out", tmp_path / "good", *FAST).status == 0
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    assert "cut" in fault(tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_text("this is no archive")
    assert "text.tar" in fault(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("a/1.png", "../../b/2.png"):
            member = tarfile.TarInfo(name)
            data = images_in(people)[0].read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "../../b/2.png" in fault(tmp_path / "evil.tar")
    assert not (tmp_path.parent / "b").exists()


# Weights and pairs


def test_weights_that_do_not_open(
    command: Callable[..., Ran], faces: Path, weights: Path, tmp_path: Path
) -> None:
    def fault() -> str:
        one = command("finetune", faces, "--weights", tmp_path / "w", "--out", tmp_path / "out", *TUNE).fault
        two = command("eval", "--weights", tmp_path / "w", "--data", faces, "--out", tmp_path / "out").fault
        assert one == two
        return one

    shutil.copytree(weights / "best", tmp_path / "w")
    model, config = tmp_path / "w" / "model.safetensors", tmp_path / "w" / "config.json"
    os.truncate(model, model.stat().st_size - 1000)
    assert "cut short or changed" in fault()
    text = json.loads(config.read_text())
    del text["sha256"]
    config.write_text(json.dumps(text))
    assert "cannot be read" in fault()
    shutil.copy(weights / "best" / "model.safetensors", model)
    config.write_text(json.dumps(text | {"architecture": "resnet10t"}))
    assert "does not hold resnet10t" in fault()
    config.write_text(json.dumps(text | {"architecture": "resnet10tt"}))
    assert "did you mean 'resnet10t'" in fault()
    config.write_text("{")
    assert "config.json cannot be read" in fault()


def test_a_pair_without_its_image_is_an_error_that_lists_it(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    names = [f"people/{path.parent.name}/{path.name}" for path in images_in(people)]
    lines = [f"{names[0]},{names[1]},1", f"{names[0]},people/nobody/1.png,0", f"nowhere.png,{names[9]},0"]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["image1_path,image2_path,label", *lines]) + "\n")
    words = ["eval", "--weights", weights, "--pairs", pairs, "--out", tmp_path / "out"]
    for data in ([], ["--data", people]):
        fault = command(*words, *data).fault
        assert "nobody/1.png" in fault
        assert "nowhere.png" in fault
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_pair_whose_image_is_bad_is_an_error_too(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    images = images_in(people)
    images[1].write_bytes(b"")
    names = [f"people/{path.parent.name}/{path.name}" for path in images]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"path_a,path_b,same\n{names[0]},{names[1]},1\n{names[0]},{names[9]},0\n")
    fault = command("eval", "--weights", weights, "--pairs", pairs, "--out", tmp_path / "out").fault
    assert "1 of 3 images that the pairs name cannot be read" in fault
    assert images[1].name in fault


# Disk and signals


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Let the system refuse writes past so many bytes of a file, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [500_000, 2_000_000], ids=["at the start", "after an epoch"])
def test_a_full_disk_in_stage_one(
    command: Callable[..., Ran],
    faces: Path,
    tmp_path: Path,
    file_limit: Callable[[int], None],
    size: int,
) -> None:
    file_limit(size)
    fault = command("pretrain", faces, "--out", tmp_path / "out", *FAST).fault
    assert "out/checkpoint.pt" in fault
    assert "free some of the disk" in fault
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not {"best.new", "checkpoint.new"} & left
    assert ("best" in left) == ("checkpoint.pt" in left) == (size > 1_000_000)


def test_a_full_disk_in_stage_two(
    command: Callable[..., Ran],
    faces: Path,
    weights: Path,
    tmp_path: Path,
    file_limit: Callable[[int], None],
) -> None:
    file_limit(10_000)
    tune = ["--weights", weights, "--out", tmp_path / "out", *TUNE]
    fault = command("finetune", faces, *tune).fault
    assert str(tmp_path / "features") in fault
    assert "free some of the disk" in fault
    assert list((tmp_path / "features").iterdir()) == []
    file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert command("finetune", faces, *tune).status == 0


def test_a_folder_that_cannot_be_written(command: Callable[..., Ran], faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"({out}" in command("pretrain", faces, "--out", out, *FAST).fault


def test_an_interrupt_before_the_first_step(
    command: Callable[..., Ran], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "split_for", interrupt)
    assert "interrupted" in command("pretrain", faces, "--out", tmp_path / "out", *FAST).fault
    monkeypatch.undo()
    assert command("pretrain", faces, "--out", tmp_path / "out", *FAST).status == 0


def test_a_bug_keeps_its_traceback(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from facemetric.training import pretrain as room

    for error in (RuntimeError("a bug"), OSError("a bug that names no file and no reason")):

        def fail(config: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(room, "pretrain", fail)
        with pytest.raises(type(error), match="a bug"):
            cli.main(["pretrain", str(faces)])


def test_a_full_disk_in_a_thread_is_left_to_the_main_one(
    command: Callable[..., Ran], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def fail(config: Any) -> None:
        for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug")):

            def raise_it(error: Exception = error) -> None:
                raise error

            thread = threading.Thread(target=raise_it)
            thread.start()
            thread.join()

    monkeypatch.setattr(room, "pretrain", fail)
    before = threading.excepthook
    ran = command("pretrain", faces)
    assert threading.excepthook is before
    assert "No space left" not in ran.err
    assert ran.err.count("Traceback") == 1  # a bug keeps its own
    assert "RuntimeError: a bug" in ran.err


def test_a_message_of_many_lines_is_one_line(
    command: Callable[..., Ran], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def fail(config: Any) -> None:
        raise DataError("first\n  second\n\nthird")

    monkeypatch.setattr(room, "pretrain", fail)
    assert command("pretrain", faces).fault == "facemetric: first second third"


def test_ctrl_c_writes_a_checkpoint_and_resume_goes_on(
    command: Callable[..., Ran], faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["pretrain", str(faces), "--out", str(out), *FAST]
    words[words.index("--epochs") + 1], words[words.index("--workers") + 1] = "6", "1"
    job = subprocess.Popen(
        [sys.executable, "-m", "facemetric.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        patience = time.monotonic() + 60
        while not ((out / "log.jsonl").exists() and "validation" in (out / "log.jsonl").read_text()):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < patience
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does: the readers of images get it too
        ran = Ran(job.returncode, *job.communicate(timeout=60))
    finally:
        if job.poll() is None:
            job.kill()
    ran = ran._replace(status=job.returncode)
    assert "the same command with --resume goes on" in ran.fault
    assert (out / "checkpoint.pt").exists()
    assert "already holds a run" in command(*words).fault
    words[words.index("--workers") + 1] = "0"
    assert command(*words, "--resume").status == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "validation"] == list(range(1, 7))
