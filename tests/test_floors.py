"""Imports go down the floors of the house, and the commands start without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import facemetric

ROOT = Path(facemetric.__file__).parent
FLOORS = {
    "errors": 0,
    "files": 0,
    "machine": 0,
    "distributed": 0,
    "config": 0,
    "data": 1,
    "mining": 1,
    "faces": 2,
    "model": 2,
    "evaluation": 3,
    "gallery": 4,
    "training": 4,
    "report": 4,
    "commands": 5,
}
LOADERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
MOVING = {  # what renames: files appear whole by files.write_whole, and by no other hand
    "facemetric/files.py",
    "facemetric/training/run/checkpoint.py",  # keeps the one before, and reads the new one back
    "facemetric/training/tasks/feature_cache.py",  # filled in place, hours long, under a lock
    "facemetric/model/weights/folder.py",  # a folder
    "facemetric/commands/demo.py",  # folders
    "tools/import_dataset.py",  # a folder
    "tools/fuzz_readers.py",  # a file that it made itself
}
TOP = 6  # cli, __init__


def imports(path: Path) -> set[str]:
    """The rooms of facemetric that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("facemetric."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.split(".")[1] for name in node.names if name.name.startswith("facemetric.")}
    return found


def used(path: Path) -> set[str]:
    """What a file imports from a module, or takes from one that it imported: `pickle.loads`."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            names = [name.asname for name in node.names if name.asname]
            found |= {f"{name.name}.{name.asname}" for name in node.names if name.asname in names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
    return found


def room(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


def test_imports_go_down() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 20
    wrong = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imports(path)
        if other != room(path) and FLOORS.get(other, TOP) > FLOORS.get(room(path), TOP)
    ]
    assert not wrong


def test_rooms_side_by_side_do_not_know_each_other() -> None:
    sides = (("data", "mining"), ("training", "report"), ("gallery", "training"), ("gallery", "report"))
    for one, other in (*sides, *((b, a) for a, b in sides)):
        assert not [p for p in (ROOT / one).rglob("*.py") if other in imports(p)]


def test_only_stages_and_commands_know_the_options() -> None:
    knowing = {
        str(p.relative_to(ROOT)) for p in ROOT.rglob("*.py") if "config" in imports(p) and room(p) != "config"
    }
    below = {
        name
        for name in knowing
        if name.split("/")[0] not in ("cli.py", "cli_words.py", "commands", "training")
    }
    assert not below


def renames(path: Path) -> bool:
    """Whether a file calls os.replace, os.rename, shutil.move, or a path's own replace or rename."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            plain = len(node.args) == 1 and not node.keywords  # a text's replace takes two
            if name in ("os.replace", "os.rename", "shutil.move") or (
                plain and node.func.attr in ("replace", "rename")
            ):
                return True
    return False


def test_whole_files_are_written_in_one_way() -> None:
    house = Path(__file__).resolve().parents[1]
    found = [*(house / "facemetric").rglob("*.py"), *(house / "tools").glob("*.py")]
    assert {str(path.relative_to(house)) for path in found if renames(path)} == MOVING


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom facemetric.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy', 'pandas', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


def test_the_list_of_weights_does_not_import_torch() -> None:
    code = (
        "import sys\nfrom facemetric.cli import main\ntry: main(['weights'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'numpy'} & set(sys.modules)\nsys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "faces-112" in done.stdout


def test_no_pickle_and_no_eval() -> None:
    """Nothing that comes from outside may build objects or run code: pickles are read by a reader of our own."""
    for path in ROOT.rglob("*.py"):
        for name in used(path):
            first, _, rest = name.partition(".")
            assert first not in LOADERS or rest == "UnpicklingError", f"{path.name} uses {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            where = f"{path.name}:{node.lineno}"
            assert name not in ("eval", "exec", "compile", "pd.read_pickle", "pandas.read_pickle"), where
            assert words.get("allow_pickle", "False") == "False", where
            if name == "torch.load":
                assert words.get("weights_only") == "True", where
