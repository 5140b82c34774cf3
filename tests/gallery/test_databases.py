"""The recipes of facemetric/gallery/databases.md, run as they are, where their libraries are installed."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import facemetric

PAGE = Path(facemetric.__file__).parent / "gallery" / "databases.md"
RECIPES = dict(re.findall(r"^## (\w+).*?```python\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL))


def test_the_recipes_are_found() -> None:
    assert set(RECIPES) == {"usearch", "faiss", "DuckDB", "LanceDB", "Qdrant", "Milvus"}
    assert "## pgvector" in PAGE.read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_finds_the_face_that_it_asks_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pd = pytest.importorskip("pandas")
    code = RECIPES[name]
    modules = {node.names[0].name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import)}
    modules |= {node.module or "" for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
    for module in {module.split(".")[0] for module in modules}:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    emb = np.random.default_rng(0).standard_normal((300, 128)).astype(np.float32)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    frame = pd.DataFrame({"path": [f"p{i}.jpg" for i in range(300)], "identity": "", "embedding": list(emb)})
    monkeypatch.chdir(tmp_path)
    frame.to_parquet("E.parquet")
    space: dict[str, Any] = {}
    exec(code, space)
    best = np.argsort(-(emb @ emb[7]))[:3]
    assert [path for path, _ in space["answer"]] == [f"p{i}.jpg" for i in best]
    scores = [score for _, score in space["answer"]]
    np.testing.assert_allclose(scores, (emb @ emb[7])[best], atol=1e-2 if name in ("usearch",) else 1e-4)
