"""What Python users see: names, signatures, types; nothing is printed."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import facemetric as fm
from facemetric.cli import main
from facemetric.errors import ConfigError

SCRIPT = """
from pathlib import Path

import numpy as np
from PIL import Image

import facemetric as fm

embedder = fm.load_embedder("faces-112", device="cpu")
vectors = embedder.embed(["a.jpg", Path("b.jpg"), Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)], flip=True)
reveal_type(vectors)
reveal_type(fm.similarity(vectors, vectors))
embedder.transform(Image.new("RGB", (8, 8)))
answer = fm.Verifier("faces-112", far=1e-3)("a.jpg", "b.jpg")
reveal_type(answer.same)
reveal_type(answer.score)
trained = fm.pretrain("faces", arch="lcnet_050", epochs=3, out=Path("runs/x"), head="arcface")
reveal_type(trained.weights)
reveal_type(fm.finetune(fm.FinetuneConfig(("faces",), weights="runs/x")))
reveal_type(fm.evaluate("runs/x", pairs="pairs.csv", fars=[1e-2, 1e-3]))
fm.run("recipe.toml")
fm.verify("a.jpg", "b.jpg", weights=trained.weights)
try:
    fm.calibrate(["faces", "more"], weights="runs/x", far=1e-3)
except fm.FacemetricError as error:
    print(error)
"""
WRONG = {
    'fm.pretrain("faces", archh="x")': "archh",
    'fm.pretrain("faces", epochs="many")': "epochs",
    'fm.pretrain("faces", val_by="imagess")': "val_by",
    "fm.evaluate(fm.PretrainConfig())": "PretrainConfig",
    'fm.load_embeder("faces-112")': "load_embeder",
}
# Types of others, and of rooms that no public name comes from, take mypy a minute and say nothing of the API.
SKIPPED = (
    *(
        "torch",
        "torchvision",
        "timm",
        "pandas",
        "matplotlib",
        "scipy",
        "sklearn",
        "cyclopts",
        "jinja2",
        "tqdm",
    ),
    *(
        "tensorboard",
        "facemetric.data",
        "facemetric.mining",
        "facemetric.training.tasks",
        "facemetric.evaluation",
    ),
)
MYPY_INI = f"""
[mypy]
ignore_missing_imports = True
[mypy-{",".join(f"{name}.*" for name in SKIPPED)}]
follow_imports = skip
"""


def type_check(tmp_path: Path, script: str) -> tuple[int, str]:
    """mypy's status and messages for a script of a user, who has facemetric installed."""
    (tmp_path / "script.py").write_text(script)
    (tmp_path / "mypy.ini").write_text(MYPY_INI)
    line = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--cache-dir",
        str(tmp_path),
        "script.py",
    ]
    where = os.environ | {"MYPYPATH": str(Path(fm.__file__).parents[1])}
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=where)
    return done.returncode, done.stdout


def test_mypy_passes_on_a_script_and_finds_its_mistakes(tmp_path: Path) -> None:
    status, said = type_check(tmp_path, SCRIPT + "\n".join(WRONG) + "\n")
    revealed = [line.split('"')[1] for line in said.splitlines() if "Revealed type" in line]
    assert [text.split("[")[0].rpartition(".")[2] for text in revealed] == [
        *("ndarray", "ndarray", "bool", "float", "Path", "tuple", "Evaluation"),
    ]
    first = SCRIPT.count("\n") + 1
    faults = [line for line in said.splitlines() if " error: " in line]
    assert {int(line.split(":")[1]) for line in faults} == set(range(first, first + len(WRONG)))
    for at, word in enumerate(WRONG.values()):
        assert any(f"script.py:{first + at}:" in line and word in line for line in said.splitlines())
    assert status == 1


def test_the_stub_is_what_the_configs_say() -> None:
    import make_api_stub

    assert make_api_stub.STUB.read_text() == make_api_stub.stub(), "run python tools/make_api_stub.py"
    assert make_api_stub.STUB.with_name("py.typed").is_file()


def test_every_public_name_is_listed_and_there() -> None:
    assert set(dir(fm)) == set(fm.__all__)
    for name in dir(fm):
        assert getattr(fm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_embeder'"):
        _ = fm.load_embeder  # type: ignore[attr-defined]


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, facemetric\ndir(facemetric), facemetric.__version__, facemetric.PretrainConfig()\n"
        "print({'torch', 'numpy', 'pandas', 'timm', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_errors_speak_of_arguments_and_on_the_terminal_of_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"holds no checkpoint to resume; start without resume=True$"):
        fm.pretrain("faces", out=tmp_path / "run", resume=True)
    with pytest.raises(SystemExit):
        main(["pretrain", "faces", "--out", str(tmp_path / "run"), "--resume"])
    assert capsys.readouterr().err.endswith("start without --resume\n")
    with pytest.raises(ConfigError, match=r"unknown option 'learning_rate': did you mean 'lr'\?"):
        fm.pretrain("faces", learning_rate=0.1)  # type: ignore[call-arg]


def test_similarity_of_two_vectors_is_a_number() -> None:
    two = np.array([[3.0, 4.0], [4.0, 3.0]])
    one = fm.similarity(two[0], two[1])
    assert one.shape == ()
    assert float(one) == pytest.approx(0.96)
    assert fm.similarity(two, two[0]).shape == (2, 1)
    assert fm.similarity(two[:1], two).shape == (1, 2)


def test_signatures_show_the_options() -> None:
    shown = inspect.signature(fm.pretrain)
    assert next(iter(shown.parameters)) == "data"
    assert shown.parameters["data"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert shown.parameters["arch"].kind is inspect.Parameter.KEYWORD_ONLY
    assert shown.parameters["arch"].default == "mobilenetv4_conv_small"
    assert shown.return_annotation == "Trained"
    assert list(inspect.signature(fm.verify).parameters)[:2] == ["image1", "image2"]


def test_a_config_goes_in_place_of_its_options() -> None:
    from facemetric.config.calls import takes_options

    seen: list[Any] = []

    @takes_options(fm.PretrainConfig)
    def call(config: fm.PretrainConfig) -> None:
        seen.append(config)

    call(fm.PretrainConfig(("faces",), epochs=3))
    call("faces", epochs=3)
    call(fm.PretrainConfig("faces", epochs=3))  # type: ignore[arg-type]
    assert seen[0] == seen[1] == seen[2]
    assert seen[0].data == ("faces",)
    with pytest.raises(ConfigError, match="options go into the PretrainConfig"):
        call(fm.PretrainConfig(("faces",)), epochs=3)
    with pytest.raises(ConfigError, match="only data goes without its name"):
        call("faces", "more")
    with pytest.raises(ConfigError, match=r"^max_bad is 2; it is a share"):
        call("faces", max_bad=2)
