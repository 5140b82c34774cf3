"""tools/measure_beyond_lfw.py: rates of groups by hand, pictures that are made worse, names of FairFace."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from measure_beyond_lfw import HELD, OLD, ORIGINS, SEEN, SEXES, WORSE, age_group, group_rates, group_table
from PIL import Image


def test_rates_of_groups_are_those_of_pairs_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=(40, 40))
    score = (score + score.T) / 2
    groups = np.array(["b"] * 25 + ["a"] * 15)
    found = list(group_rates(score, groups, 0.5))
    assert [(name, count) for name, count, _ in found] == [("a", 15), ("b", 25)]
    for name, count, rate in found:
        rows = np.flatnonzero(groups == name)
        passes = [score[i, j] >= 0.5 for i, j in combinations(rows.tolist(), 2)]
        assert rate.value == pytest.approx(sum(passes) / len(passes))
        assert rate.low < rate.value < rate.high
        assert count == len(rows)


def test_pictures_are_made_worse_and_keep_their_size() -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (112, 112, 3), np.uint8))
    for name, spoil in WORSE.items():
        other = spoil(image)
        assert other.size == image.size
        assert (np.asarray(other) != np.asarray(image)).any() == (name != "as it is")
    assert np.asarray(WORSE["lower half black"](image))[80:].max() == 0


@pytest.mark.parametrize(
    ("name", "age", "origin"),
    [
        ("unlabelled/test_3-9_East_Asian_17.webp", "0 to 9", "East_Asian"),
        ("unlabelled/test_20-29_White_5.webp", "20 to 29", "White"),
        ("unlabelled/test_more_than_70_Black_10.webp", "60 and older", "Black"),
    ],
)
def test_names_of_fairface_say_age_and_origin(name: str, age: str, origin: str) -> None:
    match = HELD.search(OLD.sub("70_", name.replace("more_", "more")))
    assert match is not None
    assert (age_group(match["age"]), match["origin"]) == (age, origin)


def test_names_of_utkface_say_sex_and_origin() -> None:
    match = SEEN.search("unlabelled/100_1_2_20170105174847679.webp")
    assert match is not None
    assert (match["age"], SEXES[match["sex"]], ORIGINS[match["origin"]]) == (
        "100",
        "women and girls",
        "Asian",
    )
    assert (
        SEEN.search("unlabelled/61_1_20170109142408075.webp") is None
    )  # an origin lacks, as in the set itself


def test_a_table_has_all_and_each_group() -> None:
    emb_ND = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], np.float32)
    lines = group_table("set", emb_ND, [np.array(["a", "a", "b", "b"])], 0.5).splitlines()
    assert [line.split(" [")[0] for line in lines[2:]] == [
        "| all | 4 | 0.1667",
        "| a | 2 | 1.0000",
        "| b | 2 | 0.0000",
    ]
