"""What a command imports: nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from exported_networks import carrying_weights, onnx_file
from photographs import HOPPER

HEAVY = {"torch", "timm", "pandas", "PIL", "sklearn", "matplotlib"}
CODE = (
    "import sys\nfrom facemetric import cli\n"
    "status = 0\n"
    "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as end:\n    status = end.code or 0\n"
    "print('status', status)\nprint('modules', *sys.modules)\n"
)


def ran(*words: object) -> tuple[int, str, set[str]]:
    """(status, what was printed, the modules that were imported) of a command in a process of its own."""
    line = [sys.executable, "-c", CODE, *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    text, _, rest = done.stdout.rpartition("status ")
    status, _, modules = rest.partition("\nmodules ")
    return int(status), text + done.stderr, set(modules.split())


def test_help_and_lists_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text('{"event": "validation", "step": 5, "epoch": 1}\n' * 1000)
    for words, shown in (
        (["runs", str(tmp_path)], "TAR @ FAR=1e-2"),
        (["weights"], "faces-112"),
        (["--help"], "Usage: facemetric"),
        (["pretrain", "--help"], "--label-smoothing"),
    ):
        status, text, modules = ran(*words)
        assert (status, HEAVY & modules) == (0, set())
        assert shown in text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("verify HERE HERE", "no weights were given"),
        ("verify nowhere.jpg HERE --weights faces-112", "nowhere.jpg: no such file"),
        ("verify HERE HERE --weights faces-11", "did you mean 'faces-112'"),
        ("run nope.toml", "nope.toml: No such file"),
        ("pretrain HERE --max-bad 2", "--max-bad is 2.0; it is a share"),
        ("finetune HERE", "no weights were given"),
        ("eval --weights nowhere", "no weights at 'nowhere'"),
        ("pretrain", "no DATA was given"),
        ("identify nowhere.jpg --gallery g", "nowhere.jpg: no such file"),
        ("gallery add nowhere HERE", "is a new gallery: name the weights"),
        ("gallery list nowhere", "nowhere is no gallery"),
    ],
)
def test_slips_are_told_before_torch_is_imported(line: str, message: str) -> None:
    status, text, modules = ran(*(__file__ if word == "HERE" else word for word in line.split()))
    assert (status, HEAVY & modules) == (2, set())
    assert message in text


def test_a_folder_that_is_taken_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"event": "train", "step": 5, "epoch": 0}\n')
    refused = {
        ("pretrain", tmp_path, "--out", run): f"{run} already holds a run; remove it, or name another --out",
        (
            "finetune",
            tmp_path,
            "--weights",
            "faces-96",
            "--out",
            run,
        ): f"{run} already holds a run; remove it",
        ("pretrain", tmp_path, "--out", tmp_path / "new", "--resume"): "holds no checkpoint to resume",
        ("pretrain", tmp_path, "--out", "a.jpg"): "--out names a file (a.jpg); needed is a folder",
        (
            "eval",
            "--weights",
            "faces-96",
            "--out",
            run / "log.jsonl" / "out",
        ): "log.jsonl is a file; name another",
    }
    for words, message in refused.items():
        status, text, modules = ran(*words)
        assert (status, HEAVY & modules) == (2, set())
        assert message in text
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_verify_imports_no_compiler() -> None:
    words = ("--weights", "faces-96", "--device", "cpu", "--runtime", "torch")
    status, text, modules = ran("verify", HOPPER, HOPPER, *words)
    assert status == 0, text
    assert "cosine" in text
    assert {"torch", "timm", "torchvision"} <= modules
    unwanted = {"torch._dynamo", "sympy", "matplotlib", "sklearn", "tensorboard", "pandas"} & modules
    assert not unwanted


def test_torch_compile_still_works_after_it() -> None:
    code = (
        "from facemetric.machine import import_timm\nimport_timm()\n"
        "import torch, torchvision\nfrom torchvision.ops import roi_align\n"
        "assert torchvision.ops.roi_align is roi_align\n"
        "x = torch.arange(16.0).reshape(1, 1, 4, 4)\n"
        "print(roi_align(x, torch.tensor([[0.0, 0, 0, 4, 4]]), 1).shape)\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(x).sum())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "torch.Size([1, 1, 1, 1])\ntensor(136.)\n", done.stderr


def test_identify_imports_no_compiler_and_no_plots(faces: Path, tmp_path: Path) -> None:
    options = ("--weights", "faces-96", "--device", "cpu", "--faces", "off")
    status, text, _ = ran("gallery", "add", tmp_path / "g", faces, *options)
    assert status == 0, text
    image = next(path for path in sorted(faces.rglob("*")) if path.is_file())
    words = ("--gallery", tmp_path / "g", "--device", "cpu", "--faces", "off", "--threshold", "0.99")
    words = (*words, "--runtime", "torch")
    status, text, modules = ran("identify", image, *words)
    assert status == 0, text
    assert "score 1.0000" in text
    unwanted = {"torch._dynamo", "sympy", "matplotlib", "sklearn", "tensorboard", "pandas"} & modules
    assert not unwanted


def test_verify_and_identify_import_no_torch_where_the_weights_carry_a_network(tmp_path: Path) -> None:
    """Weights folder or .onnx file, with the default detector; other people's start costs them no torch either."""
    unwanted = {"torch", "timm", "torchvision", "scipy", "sklearn", "pandas", "matplotlib", "onnx"}
    weights, file = carrying_weights(tmp_path / "weights"), onnx_file(tmp_path / "w.onnx")
    for name in (weights, file):
        status, text, modules = ran("verify", HOPPER, HOPPER, "--weights", name)
        assert status == 0, text
        assert "same person: cosine 1.0000 >= threshold" in text
        assert "probability above 0.999" in text
        assert not unwanted & modules
    status, text, _ = ran("gallery", "add", tmp_path / "g", "--name", "Grace", HOPPER, "--weights", weights)
    assert (status, "1 face of 1 person" in text) == (0, True), text
    for more in ((), ("--weights", file)):  # the same weights, by their fingerprint
        status, text, modules = ran("identify", HOPPER, "--gallery", tmp_path / "g", *more)
        assert status == 0, text
        assert ": Grace, score 1.0000" in text
        assert not unwanted & modules


def test_runtime_onnx_that_is_not_there_is_told(tmp_path: Path) -> None:
    words = ("--weights", onnx_file(tmp_path / "w.onnx"), "--runtime", "torch")
    status, text, modules = ran("verify", HOPPER, HOPPER, *words)
    assert (status, "--runtime torch cannot run" in text, "torch" in modules) == (2, True, False)
