"""How DATA is split into what is trained on and what is validated on."""

from __future__ import annotations

import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from child_processes import in_processes
from photographs import album
from PIL import Image

from facemetric import distributed
from facemetric.config import FinetuneConfig, StageConfig
from facemetric.data.index import read_index
from facemetric.errors import DataError
from facemetric.training.run.run import Trained
from facemetric.training.split import SPLIT_OPTIONS, faces_alone, hold_back, read_split, split_for


def test_identities_of_validation_are_never_trained_on(faces: Path) -> None:
    config = StageConfig((str(faces),), val_fraction=0.25, seed=3)
    split = read_split(config)
    assert split.val is not None
    assert len(split.val.identities) == 4
    assert not set(split.train.identities) & set(split.val.identities)
    assert len(split.train) + len(split.val) == 96
    again = read_split(config)
    assert again.train.identities == split.train.identities
    other = read_split(StageConfig((str(faces),), val_fraction=0.25, seed=4))
    assert other.train.identities != split.train.identities


def test_codes_that_differ_in_letter_case_are_people_where_that_is_said(faces: Path, tmp_path: Path) -> None:
    people = Path(shutil.copytree(faces, tmp_path / "people"))
    names = read_index(str(faces)).identities
    (people / names[0]).rename(people / "aB1")
    (people / names[1]).rename(people / "Ab1")
    with pytest.raises(DataError, match="say so with --case-twins"):
        read_split(StageConfig((str(people),)))
    split = read_split(StageConfig((str(people),), case_twins=True, val_fraction=0))
    assert {"aB1", "Ab1"} < set(split.train.identities)


def test_every_option_that_a_split_reads_is_named() -> None:
    assert set(re.findall(r"\bconfig\.(\w+)", inspect.getsource(read_split))) == set(SPLIT_OPTIONS)


def test_named_lists_split_merge_and_leave_out(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = read_index([str(faces)]).identities
    (tmp_path / "val.txt").write_text(f"{names[0]}\n{names[1]}\nnobody\n")
    (tmp_path / "out.txt").write_text(f"{names[2]}\nnobody\n")
    (tmp_path / "merge.csv").write_text(f"{names[3]},{names[4]}\n{names[5]},nobody\n")
    split = read_split(
        StageConfig(
            (str(faces),),
            val_identities=tmp_path / "val.txt",
            leave_out=tmp_path / "out.txt",
            merge=tmp_path / "merge.csv",
        )
    )
    assert split.val is not None
    assert split.val.identities == names[:2]
    assert split.train.identities == (names[3], *names[5:])
    assert split.train.counts()[0] == 12
    said = capsys.readouterr().out
    assert said.count("1 name of") == 3
    assert "first 'nobody'" in said


def test_held_back_images_leave_half_of_each_identity(faces: Path) -> None:
    index = read_index([str(faces)])
    held = hold_back(index, 0.3, seed=0)
    assert held.sum() == round(0.3 * len(index))
    assert np.bincount(index.identity[held], minlength=16).max() <= 3
    assert hold_back(index, 0.9, seed=0).sum() == 48  # never more than half
    assert (hold_back(index, 0.3, seed=0) == held).all()
    assert (hold_back(index, 0.3, seed=1) != held).any()


def test_validation_people_that_the_weights_may_know(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same data split otherwise; data that the weights never saw have no such people."""
    shutil.copytree(faces, tmp_path / "faces")
    shutil.rmtree(next(p for p in (tmp_path / "faces").iterdir() if p.is_dir()))
    for data, seed, known in ((faces, 0, False), (faces, 1, True), (tmp_path / "faces", 1, False)):
        split = split_for(FinetuneConfig((str(data),), weights=str(stage_one.run), seed=seed))
        assert split.known is known
        assert ("maybe on some of these validation identities" in capsys.readouterr().out) is known


def test_faces_are_cut_by_one_of_two_processes_and_are_those_of_one(tmp_path: Path) -> None:
    photos = album(tmp_path / "photos")
    (tmp_path / "skies").mkdir()
    Image.new("RGB", (120, 120), (90, 140, 220)).save(tmp_path / "skies" / "sky.png")
    index, sky = read_index(str(photos)), read_index(str(tmp_path / "skies"), loose=True)

    def files(folder: Path) -> dict[str, bytes]:
        return {
            file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.name != "aligned.json"
        }

    def process(rank: int) -> None:
        distributed.start("cpu")
        found = faces_alone(index, tmp_path / "two", 112)
        lines = [f"{found.name(row)} {len(found.read(row))}" for row in range(len(found))]
        (tmp_path / f"{rank}.txt").write_text("\n".join(lines))
        with pytest.raises(
            DataError, match="none of 1 picture shows a face"
        ):  # told by both: none waits for ever
            faces_alone(sky, tmp_path / "none", 112)

    assert in_processes(2, process, tmp_path / "said") == [0, 0], (tmp_path / "said").read_text()
    alone = faces_alone(index, tmp_path / "one", 112)
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert len(files(tmp_path / "one")) == 5  # four faces and their list
    wanted = [f"{alone.name(row)} {len(alone.read(row))}" for row in range(len(alone))]
    assert (tmp_path / "0.txt").read_text().splitlines() == wanted
    assert (tmp_path / "1.txt").read_text().splitlines() == wanted
