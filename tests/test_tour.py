"""The notebook runs from top to bottom, by jupyter's own runner, and shows what it says it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "configs" / "tour.ipynb"


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after it ran in an empty folder."""
    reason = "the notebook needs jupyter's runner (pip install 'facemetric[test]')"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = tmp_path_factory.mktemp("tour")
    nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook, folder


def result(notebook: Any, start: str) -> str:
    """What the cell that begins so shows."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.startswith(start))
    texts = []
    for output in cell.outputs:
        assert output.output_type != "error"
        texts.append(output.get("text") or output["data"]["text/plain"])
    return "\n".join(texts)


def test_it_runs_and_every_step_shows_its_result(tour: Any) -> None:
    notebook, folder = tour
    same, other = result(notebook, "calibrated =").splitlines()[-1].strip("()").split(", ")
    assert (same, other) == ("True", "False")
    assert "clusters" in result(notebook, "groups =")
    assert "val_tar_at_far" in result(notebook, "tuned =") or "val_auc" in result(notebook, "tuned =")
    assert "low" in result(notebook, "found =")
    assert "model.onnx" in result(notebook, "exported =")
    for file in ("eval/report.html", "export/model.onnx", "tuned/best/config.json", "groups/clusters.csv"):
        assert (folder / "runs" / "tour" / file).is_file(), file


def test_it_is_committed_without_outputs() -> None:
    import json

    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
