"""Lists made of findings: what other commands read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facemetric.commands.checking.findings import (
    ACROSS,
    DUPLICATE,
    MISLABELLED,
    ONE_PERSON,
    TEST_NAME,
    Close,
    Finding,
    Side,
    find_images,
    image_findings,
    lists,
    name_findings,
    to_leave_out,
    unsure_kinds,
)
from facemetric.commands.checking.sheets import captions_of
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.lists import read_identity_list, read_merges
from facemetric.evaluation.audit.hashes import Pairs


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    """a: 5 images, larger and larger; "b, c": 2; d: 1."""
    for name, count in (("a", 5), ("b, c", 2), ("d", 1)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (8 + 4 * i, 8, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "set" / name / f"{i}.png")
    return read_index(tmp_path / "set")


def pair(index: ImageIndex, a: int, b: int, kind: str = DUPLICATE) -> Finding:
    names = [index.identities[index.identity[row]] for row in (a, b)]
    return Finding(kind, names[0], index.name(a), names[1], index.name(b), 3, 40, row_a=a, row_b=b)


def test_of_copies_the_largest_file_stays_and_of_claimed_ones_none(index: ImageIndex) -> None:
    findings = [pair(index, 0, 2), pair(index, 2, 3), pair(index, 4, 7, ACROSS)]
    left = to_leave_out(findings, index)
    assert left == {
        "a/0.png": "the same as a/3.png",
        "a/2.png": "the same as a/3.png",
        "a/4.png": "the same as d/0.png",
        "d/0.png": "the same as a/4.png",
    }


def test_the_lists_are_read_back(index: ImageIndex, tmp_path: Path) -> None:
    findings = [
        pair(index, 5, 6),
        Finding(ONE_PERSON, "a", "", "b, c", "", 0.93, 0.9),
        Finding(MISLABELLED, "a", "a/1.png", "d", "", 0.7, 0.2, row_a=1),
        Finding(TEST_NAME, "d", "", "test/D", "", 1, 1),
    ]
    for name, text in lists(findings, index).items():
        (tmp_path / name).write_text(text)
    assert read_merges(tmp_path / "merge.csv") == [("a", "b, c")]
    assert read_identity_list(tmp_path / "duplicates.txt") == ["b, c/0.png"]
    assert read_identity_list(tmp_path / "mislabelled.txt") == ["a/1.png"]
    assert read_identity_list(tmp_path / "leave_out.txt") == ["d"]
    assert (tmp_path / "leave_out.txt").read_text().splitlines()[0] == "# name in test: test/D"
    lines = (tmp_path / "findings.csv").read_text().splitlines()
    assert lines[0] == "kind,identity_a,image_a,identity_b,image_b,score,threshold,note,quality_a,quality_b"
    assert lines[2] == 'one person,a,,"b, c",,0.93,0.9,,,'


def test_a_merge_of_a_name_like_a_comment_is_read_back(index: ImageIndex, tmp_path: Path) -> None:
    findings = [Finding(ONE_PERSON, "#tag", "", "b", "", 0.93, 0.9)]
    (tmp_path / "merge.csv").write_text(lists(findings, index)["merge.csv"])
    assert read_merges(tmp_path / "merge.csv") == [("#tag", "b")]


def test_more_bits_need_an_embedding_that_agrees(index: ImageIndex) -> None:
    first, second = np.array([0, 0, 1, 2, 3]), np.array([1, 5, 2, 6, 4])
    bits, cosine = np.array([30, 40, 60, 70, 45]), np.array([0.1, 0.1, 0.99, 0.5, np.nan])
    close = Close(Pairs(first, second, bits, 0), np.array([0, 1, 1, 0, 0], bool), cosine)
    found = image_findings(close, index, None, (35, 41), 0.9)
    assert [(f.kind, f.row_a, f.row_b, f.score, f.threshold, f.note) for f in found] == [
        (DUPLICATE, 0, 1, 30, 35, ""),
        (ACROSS, 0, 5, 40, 41, "mirrored"),
        (DUPLICATE, 1, 2, 60, 35, "mirrored; cosine 0.990"),
    ]
    assert len(image_findings(close, index, None, (35, 41), np.inf)) == 2  # without weights


def test_photographs_of_one_day_are_no_copies(index: ImageIndex) -> None:
    """Of one identity 20 bits of 255 are a copy, 48 are not; of two identities chance says what is."""
    rng = np.random.default_rng(0)
    frequencies = rng.normal(size=(len(index), 255)).astype(np.float32)
    for row, of, bits in ((1, 0, 48), (3, 2, 20), (7, 5, 48)):
        frequencies[row] = frequencies[of] * np.where(rng.permutation(255) < bits, -1, 1)
    found, figures = find_images(Side(index, frequencies), None, 0.9, 0)
    assert [(f.kind, f.row_a, f.row_b) for f in found] == [(DUPLICATE, 2, 3), (ACROSS, 5, 7)]
    assert figures.bits_within == 32


def test_names_meet_without_prefix_and_case(index: ImageIndex, tmp_path: Path) -> None:
    (tmp_path / "other" / "D").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "other" / "D" / "x.png")
    test = read_index([f"test={tmp_path / 'other'}"])
    assert [(f.identity_a, f.identity_b) for f in name_findings(index, test)] == [("d", "test/D")]


def test_kinds_that_are_no_better_than_chance_are_in_no_list() -> None:
    found = {ONE_PERSON: 4, MISLABELLED: 7, DUPLICATE: 3}
    assert set(unsure_kinds(found, {ONE_PERSON: 0.2}, 20)) == {ONE_PERSON, MISLABELLED}
    assert unsure_kinds(found, {ONE_PERSON: 2.0}, 100) == {}
    assert unsure_kinds(found, {ONE_PERSON: 2.1}, 500) == {ONE_PERSON: "chance alone brings 2.1 of 4"}
    assert unsure_kinds({DUPLICATE: 3}, {}, 2) == {}


def test_captions_name_each_side_and_its_score() -> None:
    finding = Finding(ONE_PERSON, "anna", "", "bert", "", 0.4321, 0.3)
    assert captions_of(finding, [3, 4, -1], [8]) == ["0.4321 anna", "anna", "", "0.4321 bert"]
