"""The words of the terminal: what is misspelt or missing is one line on stderr and exit status 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands_typed import FAST, Ran, images_in


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
        ("eval --weights RUN --pairs FACES", "is a folder; needed is a pairs csv or pairs.txt"),
        (
            "eval --weights IMAGE --data FACES",
            "is a file; name the folder that it lies in, with its config.json",
        ),
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
        ("verify --weights RUN", "verify needs two images: `facemetric verify A.jpg B.jpg --weights W`"),
        ("verify A.jpg B.jpg", "or a shipped name (faces-112, faces-160, faces-96)"),
        ("verify IMAGE IMAGE --weights RUN --far 1e-9", "make one with `facemetric calibrate DATA --weights"),
        ("verify A.jpg B.jpg --weights RUN --far 0.1", "A.jpg: no such file; give an image"),
        ("cluster", "nothing to group: name images, or give --embeddings"),
        (
            "cluster FACES",
            "no weights were given, which embed the images and hold a threshold for a FAR: give --weights, a",
        ),
        (
            "cluster FACES --weights RUN --far 1e-9",
            "holds no threshold for FAR 1e-09; it has those for FAR 0.1: choose one of these",
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
        (
            "pretrain FACES --head-shards 2",
            "--head-shards is a flag and takes no value, but 2 came: write --head",
        ),
        ("pretrain FACES --no-resume=3", "no value, but 3 came: write --resume or --no-resume alone"),
        ("data check FACES --flip false", "--flip is a flag and takes no value, but false came"),
        ("eval --weights RUN --svm on --data FACES", "--svm is a flag and takes no value, but on came"),
        ("heads arcface", "arcface is left over: `facemetric heads` takes none: leave it out"),
        ("weights faces-112", "faces-112 is left over: `facemetric weights` takes none: leave it out"),
        (
            "export faces-112 f.onnx",
            "f.onnx is left over: `facemetric export` takes WEIGHTS without an option's",
        ),
        ("gallery check a b", "b is left over: `facemetric gallery check` takes GALLERY without an option's"),
        ("runs a b", "b is left over: one folder, in which runs are found at any depth"),
        ("demo --identities 3", "--identities is 3; it must be at least 20"),
        ("demo --out FACES", "is not empty; name another --out"),
        (
            "export faces-112 --out f.onnx",
            "--out names a file (f.onnx); needed is a folder to write into, such as f",
        ),
        ("eval --weights RUN --data FACES --out roc.png", "--out names a file (roc.png); needed is a folder"),
        ("pretrain FACES --out IMAGE", "--out names a file"),
        ("pretrain IMAGE", "is one image; give a folder of identities (identity/image.jpg), such as"),
    ],
)
def test_what_is_misspelt_or_missing(
    command: Callable[..., Ran], faces: Path, weights: Path, tmp_path: Path, line: str, message: str
) -> None:
    names = {"FACES": faces, "RUN": weights, "IMAGE": images_in(faces)[0]}
    words = [names.get(word, word) for word in line.split()]
    no_out = ("pretrian", "data", "demo", "verify", "heads", "weights", "runs", "gallery")
    if words[0] not in no_out and "--out" not in words:
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
        ("learning_rate = 0.1\n", 'Unknown option: "learning_rate" from'),
        ("learning_rate = 0.1\n", "Did you mean --lr?"),
        ("img-size = 96\n", "Did you mean --image-size?"),
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


@pytest.mark.parametrize("line", ["data convert x", "gallery add g x", "calibrate x"])
def test_what_is_for_one_process_is_refused_under_torchrun(
    command: Callable[..., Ran], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    fault = command(*line.split()).fault
    assert f"facemetric {line.split()[0]} is for one process" in fault


def test_a_path_of_like_name_is_named(
    command: Callable[..., Ran], faces: Path, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "staff").mkdir()
    (tmp_path / "staff" / "gallery.json").write_text("{}")
    (tmp_path / "stuff.txt").write_text("no gallery")
    misspelt = tmp_path / "stuff"
    assert (
        f"{misspelt} is no gallery: did you mean '{tmp_path / 'staff'}'?"
        in command("gallery", "list", misspelt).fault
    )
    near = f"did you mean '{weights}'?"
    assert (
        near
        in command("finetune", faces, "--weights", weights.with_name("rum"), "--out", tmp_path / "out").fault
    )
    photo = images_in(faces)[0]
    wrong = photo.with_name(f"{photo.name}g")
    assert f": did you mean '{photo}'?" in command("verify", wrong, photo, "--weights", weights).fault
    assert f": did you mean '{photo}'?" in command("identify", wrong, "--gallery", tmp_path / "staff").fault
    folder = photo.parent.with_name(f"{photo.parent.name}x")
    assert "no such file or folder: did you mean '" in command("data", "check", folder).fault


def test_a_person_may_be_called_2(command: Callable[..., Ran], tmp_path: Path) -> None:
    assert "is no gallery" in command("gallery", "list", tmp_path / "g", "--json", "2").fault
