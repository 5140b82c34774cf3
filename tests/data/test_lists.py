"""Lists of identities, merges, and the checks before training."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facemetric.data.index import ImageIndex, read_index
from facemetric.data.lists import (
    apply_lists,
    check_identities,
    list_line,
    merge_identities,
    read_families,
    read_identity_list,
    read_merges,
    with_at_least,
    without_images,
)
from facemetric.errors import DataError


def folder(root: Path, **people: int) -> ImageIndex:
    for identity, images in people.items():
        (root / identity).mkdir(parents=True)
        for n in range(images):
            (root / identity / f"{n}.jpg").write_bytes(b"x")
    return read_index(root)


def names(index: ImageIndex) -> list[str]:
    return [index.name(i) for i in range(len(index))]


def text(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_read_list(tmp_path: Path) -> None:
    path = text(tmp_path / "l.txt", "\ufeffanna\n# said to be twins\n\n  bob smith \nanna\n")
    assert read_identity_list(path) == ["anna", "bob smith"]
    with pytest.raises(DataError, match="cannot be read"):
        read_identity_list(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no UTF-8 text"):
        read_identity_list(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_bytes(b"caf\xe9\nanna\n")
    assert read_identity_list(tmp_path / "c.txt") == ["caf\udce9", "anna"]


def test_a_name_that_begins_as_a_comment_does(tmp_path: Path) -> None:
    names = ["#tag", "\\#tag", "\\\\#tag", "\\tag", "a#b", "tag"]
    assert list_line("#tag") == "\\#tag"
    assert list_line("a#b") == "a#b"
    lines = "".join(f"# why\n{list_line(name)}\n" for name in names)
    assert read_identity_list(text(tmp_path / "l.txt", lines)) == names


def test_split(tmp_path: Path) -> None:
    index = folder(tmp_path, anna=2, bob=1, carl=3)
    rest, picked, unknown = index.split_identities(["carl", "anna"])
    assert (rest.identities, picked.identities, unknown) == (("bob",), ("anna", "carl"), ())
    assert sorted(names(rest) + names(picked)) == names(index)
    with pytest.raises(
        DataError, match="2 listed identities not in the data, first 'ana': did you mean 'anna'"
    ):
        index.split_identities(["ana", "bob", "dora"])
    split = index.split_identities(["ana", "bob", "dora"], skip_unknown=True)
    assert split.unknown == ("ana", "dora")
    assert split.picked.identities == ("bob",)


def test_read_merges(tmp_path: Path) -> None:
    assert read_merges(text(tmp_path / "a.txt", '# same\na,b\n\n c , d ,e\n"x,y",z\n')) == [
        ("a", "b"),
        ("c", "d", "e"),
        ("x,y", "z"),
    ]
    table = text(tmp_path / "b.csv", "distance,identity_b,identity_a\n0.1,b,a\n0.2,c,b\n")
    assert read_merges(table) == [("a", "b"), ("b", "c")]
    assert read_merges(text(tmp_path / "d.txt", "")) == []
    with pytest.raises(DataError, match="line 3: names 1"):
        read_merges(text(tmp_path / "c.txt", "a,b\n#\nc\n"))


def test_merge(tmp_path: Path) -> None:
    index = folder(tmp_path, anna=1, bob=2, carl=1, dora=1, emil=1)
    joined, merged, unknown, largest = merge_identities(index, [("dora", "bob"), ("emil", "dora")])
    assert largest == ("bob", 3, pytest.approx(2 / 3))  # bob and emil are one by way of dora alone
    assert joined.identities == ("anna", "bob", "carl")
    assert (merged, unknown) == (2, ())
    assert names(joined) == ["anna/0.jpg", "bob/0.jpg", "bob/1.jpg", "dora/0.jpg", "emil/0.jpg", "carl/0.jpg"]
    assert joined.identity.tolist() == [0, 1, 1, 1, 1, 2]
    assert joined.find("emil/0.jpg") == 4
    # Any of its names stands for the merged identity.
    assert joined.split_identities(["emil"]).picked.identities == ("bob",)
    again = merge_identities(joined, [("emil", "anna")]).joined
    assert again.identities == ("anna", "carl")
    assert again.split_identities(["dora"]).picked.counts().tolist() == [5]
    other = merge_identities(joined, [("anna", "carl")]).joined
    assert other.split_identities(["emil"]).picked.identities == ("bob",)
    with pytest.raises(
        DataError, match="1 identity to merge not in the data, first 'bop': did you mean 'bob'"
    ):
        merge_identities(index, [("anna", "bop")])
    skipped = merge_identities(index, [("anna", "bop", "carl")], skip_unknown=True)
    assert skipped.unknown == ("bop",)
    assert skipped.joined.identities == ("anna", "bob", "dora", "emil")


def test_families(tmp_path: Path) -> None:
    """Chains of lines are one family; identities that no line names are each their own."""
    index = folder(tmp_path / "d", **dict.fromkeys("abcdefg", 2))
    (tmp_path / "families.csv").write_text("# two\nf,b\nc,e,unknown\ng,b\n")
    family_C, note = read_families(index, tmp_path / "families.csv")
    assert family_C.tolist() == [0, 1, 2, 3, 2, 1, 1]
    assert note.startswith("5 identities of 2 families of two and more (1 name of ")
    assert "'unknown'" in note
    merged = merge_identities(index, [("b", "g"), ("a", "c")]).joined  # a b d e f: other names go on counting
    assert read_families(merged, tmp_path / "families.csv")[0].tolist() == [0, 1, 2, 0, 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=4), max_size=8))
def test_merge_is_connected_components(tmp_path: Path, groups: list[list[int]]) -> None:
    root = tmp_path / "p"
    index = read_index(root) if root.exists() else folder(root, **{f"p{n}": 1 for n in range(10)})
    joined = merge_identities(index, [[f"p{n}" for n in group] for group in groups]).joined
    component = list(range(10))  # the slow twin: spread the smallest number until nothing changes
    for _ in range(10):
        for group in groups:
            low = min(component[n] for n in group)
            component = [low if c in {component[n] for n in group} else c for c in component]
    found = {joined.name(i): joined.identities[joined.identity[i]] for i in range(10)}
    assert found == {f"p{n}/0.jpg": f"p{component[n]}" for n in range(10)}


def test_a_letter_and_its_accent_may_be_one_character_or_two(tmp_path: Path) -> None:
    """macOS writes file names with the two apart, and most editors write lists with them together."""
    apart, together = "Jose\u0301", "Jos\u00e9"
    index = folder(tmp_path / "one", **{apart: 2, "bob": 1})
    assert index.split_identities([together]).picked.identities == (apart,)
    assert index.find(f"{together}/1.jpg") == index.find(f"{apart}/1.jpg") is not None
    kept, unknown = without_images(index, [f"{together}/0.jpg", "bob/9.jpg"])
    assert (len(kept), unknown) == (2, ("bob/9.jpg",))
    joined = merge_identities(index, [(together, "bob")]).joined
    assert joined.identities == (apart,)
    assert joined.split_identities(["bob"]).picked.identities == (apart,)
    merged = merge_identities(folder(tmp_path / "two", **{apart: 1, "Bob": 1}), [(apart, "Bob")]).joined
    assert merged.identity_numbers([together, "nobody"]) == ([0], ["nobody"])
    both = folder(tmp_path / "three", **{apart: 1, together: 1})
    assert both.split_identities([together]).picked.identities == (together,)
    assert both.split_identities([apart]).picked.identities == (apart,)
    for name in (apart, together):
        row = both.find(f"{name}/0.jpg")
        assert row is not None
        assert both.name(row) == f"{name}/0.jpg"


def test_with_at_least(tmp_path: Path) -> None:
    index = folder(tmp_path, anna=2, bob=1, carl=3)
    kept, left_out = with_at_least(index, 2)
    assert kept.identities == ("anna", "carl")
    assert left_out == ("bob",)
    assert with_at_least(index, 1) == (index, ())


def test_check(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", dataset=3)
    with pytest.raises(
        DataError, match=r"1 identity with images \('dataset'\), 2 are needed.*folder around them"
    ):
        check_identities(one)
    check_identities(one, least=1)
    twins = folder(tmp_path / "two", Anna=1, anna=1, bob=1)
    with pytest.raises(
        DataError,
        match=r"1 pair of identities that differ in letter case alone: 'Anna' and 'anna'; merge .*-twins",
    ):
        check_identities(twins)
    check_identities(twins, allow_case_twins=True)
    check_identities(merge_identities(twins, [("Anna", "anna")]).joined)
    with pytest.raises(DataError, match="letter case"):
        check_identities(folder(tmp_path / "three", **{"zo\u00eb": 1, "zoe\u0308": 1}))


def test_images_are_left_out_by_name(tmp_path: Path) -> None:
    index = folder(tmp_path, anna=3, bob=1, cleo=2)
    rest, unknown = without_images(index, ["anna/1.jpg", "bob/0.jpg", "bob/7.jpg"])
    assert names(rest) == ["anna/0.jpg", "anna/2.jpg", "cleo/0.jpg", "cleo/1.jpg"]
    assert rest.identities == ("anna", "cleo")
    assert unknown == ("bob/7.jpg",)
    assert without_images(index, ["nobody/0.jpg"])[0] is index
    with pytest.raises(DataError, match="leaves out all 6 images"):
        without_images(index, names(index))


def test_lists_are_applied_in_their_order_and_said(tmp_path: Path) -> None:
    index = folder(tmp_path / "data", anna=2, ann=2, bob=2, cleo=2)
    images = text(tmp_path / "i.txt", "# a copy\nann/0.jpg\nzoe/1.jpg\n")
    merge = text(tmp_path / "m.csv", "identity_a,identity_b,score\nanna,ann,0.9\n")
    people = text(tmp_path / "p.txt", "bob\n")
    said: list[str] = []
    rest = apply_lists(index, merge, people, images, said.append)
    assert names(rest) == ["ann/1.jpg", "anna/0.jpg", "anna/1.jpg", "cleo/0.jpg", "cleo/1.jpg"]
    assert rest.identities == ("ann", "cleo")
    assert said == [
        f"left out 1 image (1 name of {images} not in the data, first 'zoe/1.jpg')",
        "merged 1 identity into others, at most 2 into one ('ann')",
        "left out 1 identity",
    ]
    assert apply_lists(index, None, None, None, said.append) is index


def test_a_chain_of_merges_is_said(tmp_path: Path) -> None:
    index = folder(tmp_path / "data", anna=1, bob=1, cleo=1, dora=1, emil=1, fay=1)
    said: list[str] = []
    few = text(tmp_path / "few.csv", "emil,fay\nanna,bob\ncleo,bob\ndora,cleo\n")
    assert apply_lists(index, few, None, None, said.append).identities == ("anna", "emil")
    assert said.pop() == "merged 4 identities into others, at most 4 into one ('anna')"
    chain = text(tmp_path / "chain.csv", "emil,fay\nanna,bob\ncleo,bob\ndora,cleo\nemil,dora\nfay,emil\n")
    apply_lists(index, chain, None, None, said.append)
    assert said.pop() == (
        "merged 5 identities into others, at most 6 into one ('anna'; only 33% of the pairs of its names are listed, "
        "so it is a chain and may join many people: keep the surest pairs alone)"
    )
    whole = text(tmp_path / "whole.csv", "anna,bob,cleo,dora,emil,fay\n")
    apply_lists(index, whole, None, None, said.append)
    assert said.pop() == "merged 5 identities into others, at most 6 into one ('anna')"


def test_a_field_beyond_all_names_is_no_csv(tmp_path: Path) -> None:
    path = text(tmp_path / "m.txt", "a,b\nc," + "d" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"m.txt line 2: is no csv \(field larger than field limit") as caught:
        read_merges(path)
    assert len(str(caught.value)) < 300


def test_a_list_without_a_group_merges_nobody(tmp_path: Path) -> None:
    index = folder(tmp_path / "data", anna=1, bob=1)
    said: list[str] = []
    assert apply_lists(
        index, text(tmp_path / "none.csv", "# none\n"), None, None, said.append
    ).identities == (
        "anna",
        "bob",
    )
    assert said == ["merged 0 identities into others"]
