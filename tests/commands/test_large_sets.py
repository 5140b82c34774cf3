"""Every command on the formats of large sets: the same images give what the folder of them gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from large_pictures import as_folder, held
from large_sets import Picture, write_lmdb, write_parquet, write_rec, write_webdataset
from small_trainings import SMALL, changed

from facemetric import check_data, cluster, embed, evaluate, finetune, pretrain
from facemetric.data.index import read_index
from facemetric.training.run.run import Trained

WRITERS: dict[str, Callable[[Path, list[Picture]], Path]] = {
    "rec": lambda path, images: write_rec(path / "train.rec", images),
    "webdataset": lambda path, images: write_webdataset(path / "a.tar", images),
    "parquet": lambda path, images: write_parquet(path / "a.parquet", images, group=10),
    "lmdb": lambda path, images: write_lmdb(
        path / "data.mdb", {name.encode(): data for name, (_, data) in held(images).items()}
    ),
}
CPU: dict[str, Any] = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def sets(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The drawn people by number, as a folder and in every format."""
    root = tmp_path_factory.mktemp("sets")
    files = [path for person in sorted(faces.iterdir()) for path in sorted(person.iterdir())]
    people = sorted({path.parent.name for path in files})
    images = [
        Picture(str(people.index(path.parent.name) + 10), f"{n:08d}.jpg", path.read_bytes())
        for n, path in enumerate(files, 1)
    ]
    return {"folder": as_folder(root / "folder", images)} | {
        kind: write(root, images) for kind, write in WRITERS.items()
    }


@pytest.fixture(scope="module")
def of_folder(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return pretrain(sets["folder"], **SMALL, out=tmp_path_factory.mktemp("runs") / "folder")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_training_ends_with_the_bits_of_the_folder(
    kind: str, sets: dict[str, Path], of_folder: Trained, tmp_path: Path
) -> None:
    index, folder = read_index(sets[kind]), read_index(sets["folder"])
    assert [index.name(i) for i in range(96)] == [folder.name(i) for i in range(96)]
    assert (index.fingerprint == folder.fingerprint) == (
        kind != "parquet"
    )  # which does not know the images' sizes
    run = pretrain(sets[kind], **SMALL, out=tmp_path / "run")
    assert changed(run, of_folder) == set()
    assert run.metrics == of_folder.metrics


@pytest.mark.parametrize("kind", WRITERS)
def test_the_other_commands(kind: str, sets: dict[str, Path], of_folder: Trained, tmp_path: Path) -> None:
    weights = of_folder.weights

    def results(data: Path, out: Path) -> list[Any]:
        scored = evaluate(weights, data=data, all_pairs=True, out=out / "eval", report=False, **CPU).figures()
        table = embed(data, weights=weights, out=out / "E.npz", faces="off", runtime="torch", **CPU).table()
        groups = cluster(
            data,
            weights=weights,
            threshold=0.5,
            out=out / "cluster",
            faces="off",
            sheets=0,
            page=False,
            **CPU,
        )
        checked = check_data(data, weights=weights, out=out / "check", faces="off", sheets=0, **CPU)
        tuned = finetune(data, weights=weights, epochs=1, batch_size=32, out=out / "tuned", **CPU)
        return [
            [(figure.key, figure.text()) for figure in scored],
            table.embeddings.tobytes(),
            table.paths.tolist(),
            groups.clusters.number.tolist(),
            checked.figures.to_dict(),
            tuned.metrics,
        ]

    folder, found = results(sets["folder"], tmp_path / "folder"), results(sets[kind], tmp_path / kind)
    for one, other in zip(folder, found, strict=True):
        assert one == other


def test_bytes_that_are_no_image(sets: dict[str, Path], of_folder: Trained, tmp_path: Path) -> None:
    """They are bad images as in a folder: listed, and left out."""
    index = read_index(sets["folder"])
    images = [Picture(str(10 + n % 3), f"{n:08d}.jpg", index.read(n)) for n in range(1, 13)]
    images[4] = images[4]._replace(data=b"GIF89a that is none")
    for kind, write in WRITERS.items():
        (tmp_path / kind).mkdir()
        data = write(tmp_path / kind, images)
        done = embed(
            data,
            weights=of_folder.weights,
            out=tmp_path / kind / "E.npz",
            faces="off",
            runtime="torch",
            **CPU,
        )
        assert (done.rows, done.unreadable) == (11, 1)
        assert done.left_out is not None
        assert "12/00000005.jpg" in done.left_out.read_text()
