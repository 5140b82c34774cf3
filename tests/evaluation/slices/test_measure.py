import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import DataError
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.records import wilson
from facemetric.evaluation.slices.measure import ACROSS, groups_of_pairs, slice_all_pairs, slice_pairs
from facemetric.evaluation.verification import verify_pairs

FARS = (0.1, 0.02, 1e-9)


def drawn_pairs(n=3000, persons=400, seed=0):
    """Listed pairs of a column of two groups, one of which is harder, a tiny group and pairs of no group."""
    rng = np.random.default_rng(seed)
    same = rng.random(n) < 0.5
    a = rng.integers(persons, size=n)
    b = np.where(same, a, (a + 1 + rng.integers(persons - 1, size=n)) % persons)
    group = rng.choice(["easy", "hard", "tiny", ""], p=[0.5, 0.3, 0.005, 0.195], size=n)
    score = rng.normal(same * np.where(group == "hard", 1.0, 2.0), 1.0) / 8
    return score, same, (a, b), group


def test_rates_of_listed_groups_at_the_threshold_of_all():
    score, same, persons, group = drawn_pairs()
    points = verify_pairs(score, same, fars=FARS).points
    (slicing,) = slice_pairs(score, same, persons, points, {"light": group}, draws=300)
    assert [g.name for g in slicing.groups] == ["easy", "hard", "tiny"]
    for g in slicing.groups[:2]:
        inside = group == g.name
        assert (g.n_genuine, g.n_impostor) == ((inside & same).sum(), (inside & ~same).sum())
        assert g.n_people == len(set(persons[0][inside]) | set(persons[1][inside]))
        assert [r.wanted for r in g.rates] == [0.1, 0.02]  # 1e-9 is not supported
        for rate, point in zip(g.rates, points, strict=False):
            far, tar = slow.rates(score[inside], same[inside], point.threshold)
            assert (rate.far.value, rate.tar.value) == pytest.approx((far, tar))
            for interval, kind in ((rate.far, ~same), (rate.tar, same)):
                peer = wilson(
                    int((score[inside & kind] >= point.threshold).sum()), int((inside & kind).sum())
                )
                assert interval.low < interval.value < interval.high
                assert interval.high - interval.low == pytest.approx(peer.high - peer.low, rel=0.4)
    tiny = slicing.groups[2]
    assert tiny.rates == ()
    assert "needed 30 of each" in tiny.too_small


def test_the_largest_gap_and_its_interval():
    score, same, persons, group = drawn_pairs()
    points = verify_pairs(score, same, fars=FARS).points
    (slicing,) = slice_pairs(score, same, persons, points, {"light": group}, draws=300)
    rates = {g.name: g.rates for g in slicing.groups}
    tar = next(gap for gap in slicing.gaps if gap.rate == "tar" and gap.wanted == 0.02)
    assert (tar.low_group, tar.high_group) == ("hard", "easy")
    assert tar.difference.value == pytest.approx(rates["easy"][1].tar.value - rates["hard"][1].tar.value)
    assert 0 < tar.difference.low < tar.difference.value < tar.difference.high
    # Groups are told apart wherever their own intervals are far from each other; of noise they are not.
    noise = np.random.default_rng(9).choice(["a", "b", "c"], size=len(score))
    (of_noise,) = slice_pairs(score, same, persons, points, {"coin": noise}, draws=300)
    gap = next(g for g in of_noise.gaps if g.rate == "tar" and g.wanted == 0.1)
    assert gap.difference.low < 0.04
    found = slicing.to_dict()
    assert found["groups"]["tiny"]["too_small"].startswith(f"{slicing.groups[2].n_genuine} genuine")
    assert found["groups"]["easy"]["at_overall_far"]["0.1"]["tar"] == rates["easy"][0].tar.value
    assert found["largest_gaps"][0]["rate"] == "tar"


def test_a_group_without_errors_has_wilsons_bound():
    score, same, persons, group = drawn_pairs()
    score = np.where((group == "hard") & ~same, -1, score)
    points = verify_pairs(score, same, fars=FARS).points
    (slicing,) = slice_pairs(score, same, persons, points, {"light": group}, draws=200)
    hard = next(g for g in slicing.groups if g.name == "hard")
    assert tuple(hard.rates[0].far) == tuple(wilson(0, hard.n_impostor))


def test_a_column_of_many_values_is_not_sliced():
    score, same, persons, _ = drawn_pairs()
    points = verify_pairs(score, same, fars=FARS).points
    (slicing,) = slice_pairs(score, same, persons, points, {"name": np.arange(len(score)).astype(str)})
    assert slicing.groups == ()
    assert slicing.note == "3000 values; at most 50 are taken as groups"


def test_groups_of_pairs_of_images():
    found = groups_of_pairs({"age": np.array(["old", "old", "young", ""])}, [0, 0, 0, 2], [1, 2, 3, 2])
    assert found["age"].tolist() == ["old", "(across groups)", "", "young"]
    with pytest.raises(DataError, match=r"2 images have the age '\(across groups\)'.*give the group another"):
        groups_of_pairs({"age": np.array([ACROSS, "old", ACROSS])}, [0], [1])


def in_gaps(slicing):
    return {name for gap in slicing.gaps for name in (gap.low_group, gap.high_group)}


def test_pairs_across_groups_are_shown_but_make_no_gap():
    score, same, persons, group = drawn_pairs()
    points = verify_pairs(score, same, fars=FARS).points
    group = np.where(group == "hard", ACROSS, np.where(np.arange(len(group)) % 2, "even", "odd"))
    (slicing,) = slice_pairs(score, same, persons, points, {"light": group}, draws=100)
    assert [g.name for g in slicing.groups] == ["(across groups)", "even", "odd"]
    assert in_gaps(slicing) == {"even", "odd"}
    group = np.where(group == ACROSS, group, "alone")
    (slicing,) = slice_pairs(score, same, persons, points, {"light": group}, draws=100)
    assert [g.name for g in slicing.groups if not g.too_small] == ["(across groups)", "alone"]
    assert slicing.gaps == ()


def test_people_of_mixed_descent_are_a_group_like_others():
    score, same, persons, group = drawn_pairs()
    points = verify_pairs(score, same, fars=FARS).points
    group = np.where(group == "hard", "mixed", "other")
    (slicing,) = slice_pairs(score, same, persons, points, {"descent": group}, draws=100)
    assert in_gaps(slicing) == {"mixed", "other"}


def test_over_all_pairs_no_name_is_left_out_of_the_gaps():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(60), 4)
    emb = rng.normal(size=(60, 10))[labels] + rng.normal(size=(240, 10))
    points = verify_all_pairs(emb, labels, fars=(0.1,)).points
    for name in (ACROSS, "mixed"):
        columns = {"descent": np.where(labels % 2, name, "other")}
        (slicing,) = slice_all_pairs(emb, labels, points, columns, draws=100)
        assert in_gaps(slicing) == {name, "other"}


def test_the_gap_of_groups_without_mistakes_is_not_certain():
    score, same, persons, group = drawn_pairs()
    score = np.where(same, 0.5, -0.5)
    points = verify_pairs(score, same, fars=(0.1,)).points
    columns = {"light": group}
    (slicing,) = slice_pairs(score, same, persons, points, columns, draws=100)
    easy, hard = (next(g for g in slicing.groups if g.name == name).rates[0] for name in ("easy", "hard"))
    assert [gap.rate for gap in slicing.gaps] == ["tar", "far"]
    for gap, share in zip(slicing.gaps, ((easy.tar, hard.tar), (easy.far, hard.far)), strict=True):
        assert gap.difference.value == 0
        widths = sorted(interval.high - interval.low for interval in share)
        assert sorted([-gap.difference.low, gap.difference.high]) == pytest.approx(widths)
    # One group with all its mistakes, the other with none.
    score = np.where(same & (group == "hard"), -0.5, score)
    (slicing,) = slice_pairs(score, same, persons, points, columns, draws=100)
    tar = slicing.gaps[0].difference
    assert tar.value == tar.high == 1
    assert 0.95 < tar.low < 1


def test_more_points_than_one_walk_counts():
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(60), 4)
    emb = rng.normal(size=(60, 10))[labels] + rng.normal(size=(240, 10))
    columns = {"side": np.where(labels % 2, "left", "right")}
    fars = np.geomspace(0.002, 0.5, 19).tolist()
    points = verify_all_pairs(emb, labels, fars=fars).points
    (together,) = slice_all_pairs(emb, labels, points, columns, draws=100)
    alone = [slice_all_pairs(emb, labels, [p], columns, draws=100)[0] for p in points]
    for g, group in enumerate(together.groups):
        for rates, one in zip(group.rates, alone, strict=True):
            for mine, theirs in zip(rates[1:], one.groups[g].rates[0][1:], strict=True):
                assert mine == pytest.approx(theirs, abs=1e-12)
    assert [gap[:4] for gap in together.gaps] == [gap[:4] for one in alone for gap in one.gaps]


def test_all_pairs_as_the_listed_pairs_of_each_group():
    rng = np.random.default_rng(0)
    labels = rng.integers(60, size=300)
    group = np.array(["left", "right", ""])[rng.choice(3, p=[0.5, 0.4, 0.1], size=300)]
    noise = np.where(group == "left", 0.7, 1.3)[:, None]
    emb = (rng.normal(size=(60, 10))[labels] + noise * rng.normal(size=(300, 10))).astype(np.float32)
    points = verify_all_pairs(emb, labels, fars=FARS).points
    (ours,) = slice_all_pairs(emb, labels, points, {"side": group}, draws=400)
    assert [g.name for g in ours.groups] == ["left", "right"]
    i, j = np.triu_indices(300, 1)
    inside = (group[i] == group[j]) & (group[i] != "")
    score, same = slow.all_pairs(emb, labels)
    persons = labels[i][inside], labels[j][inside]
    shifted = [p._replace(threshold=p.threshold - 1e-6) for p in points]  # float32 scores
    columns = {"side": group[i][inside]}
    (theirs,) = slice_pairs(score[inside], same[inside], persons, shifted, columns, draws=400)
    for one, other in zip(ours.groups, theirs.groups, strict=True):
        assert (one.n_genuine, one.n_impostor, one.n_people) == (
            other.n_genuine,
            other.n_impostor,
            other.n_people,
        )
        for a, b in zip(one.rates, other.rates, strict=True):
            for mine, listed in ((a.far, b.far), (a.tar, b.tar)):
                assert mine.value == pytest.approx(listed.value)
                assert mine.high - mine.low == pytest.approx(listed.high - listed.low, rel=0.3)
    for a, b in zip(ours.gaps, theirs.gaps, strict=True):
        assert tuple(a)[:4] == tuple(b)[:4]
        assert (a.difference.low, a.difference.high) == pytest.approx(
            (b.difference.low, b.difference.high), abs=0.05
        )
