"""Lists of groups and of pairs of images: what is read, and what is refused with its lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from facemetric.data.group_lists import Member, read_clusters, read_corrections, read_link_pairs
from facemetric.errors import DataError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "list.csv"
    file.write_text(text, encoding="utf-8-sig")
    return file


def test_an_earlier_run_by_its_folder_or_its_csv(tmp_path: Path) -> None:
    text = "path,cluster,distance_to_centre,name,confirmed\na/1.jpg,4,0.1,Anna,1\nb.jpg,4,0.2,Anna,0\n"
    (tmp_path / "clusters.csv").write_text(text)
    found = read_clusters(tmp_path)
    assert found == read_clusters(tmp_path / "clusters.csv")
    assert found.members == (Member("a/1.jpg", 4, "Anna", True, 2), Member("b.jpg", 4, "Anna", False, 3))
    assert found.where(found.members[1]).endswith("clusters.csv line 3")
    old = written(tmp_path, "path,cluster,distance_to_centre\na,0,0.1\n")  # of a version without names
    assert read_clusters(old).members == (Member("a", 0, "", False, 2),)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no clusters\.csv; give the out folder of an earlier"):
        read_clusters(tmp_path / "empty")


def test_corrections_of_a_page_of_a_person_and_of_excel(tmp_path: Path) -> None:
    page = read_corrections(written(tmp_path, 'path,cluster,name\n"a, b.jpg",3,"O\'Neil, Jo"\nc.jpg,4,\n'))
    assert page.members == (
        Member("a, b.jpg", 3, "O'Neil, Jo", True, 2),
        Member("c.jpg", 4, "", True, 3),
    )
    by_hand = read_corrections(written(tmp_path, "name;path\nAnna;x.jpg\n\nBob;y.jpg\n"))
    assert by_hand.members == (Member("x.jpg", -1, "Anna", True, 2), Member("y.jpg", -1, "Bob", True, 4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,cluster\na,1\n", "no column 'path' in its first line.*needed is path,cluster,name"),
        ("path,distance\na,1\n", "no column 'cluster'"),
        ("path,cluster\n,1\n", "line 2: an empty path"),
        ("path,cluster\na,one\n", "line 2: the cluster is 'one'; needed its number"),
        ("path,cluster\na,-1\n", "line 2: the cluster is '-1'"),
        ("path,cluster,name\na,,\n", "line 2: neither a cluster nor a name"),
        ("path,cluster,confirmed\na,1,perhaps\n", "line 2: confirmed is 'perhaps'; needed 1 or 0"),
        ("path,cluster\na,1\nb,1\na,2\n", "lines 2 and 4: a is in two groups, cluster 1 and cluster 2"),
        ("path,name\na,Anna\na,Bob\n", "lines 2 and 3: a is in two groups, 'Anna' and 'Bob'"),
        (
            "path,cluster,name\na,1,Anna\nb,1,Bob\n",
            "lines 2 and 3: cluster 1 has two names, 'Anna' and 'Bob'",
        ),
        ("path,cluster,name\na,1,Anna\nb,2,Anna\n", "lines 2 and 3: two clusters have the name 'Anna'"),
    ],
)
def test_what_is_no_list_of_groups(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(DataError, match=f"{re.escape(str(file))}.*{message}"):
        read_corrections(file)


def test_pairs_with_and_without_a_header(tmp_path: Path) -> None:
    plain = read_link_pairs(written(tmp_path, "\na.jpg,b.jpg\nc.jpg, d.jpg ,sure\n".replace(",sure", "")))
    assert [(p.path_a, p.path_b, p.where[-6:]) for p in plain] == [
        ("a.jpg", "b.jpg", "line 2"),
        ("c.jpg", "d.jpg", "line 3"),
    ]
    named = read_link_pairs(written(tmp_path, "score,path_b,path_a\n0.4,b,a\n"))
    assert [(p.path_a, p.path_b) for p in named] == [("a", "b")]
    assert read_link_pairs(written(tmp_path, "image1_path,image2_path,label\na,b,1\n"))[0][:2] == ("a", "b")
    assert read_link_pairs(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg\n", "line 1: names fewer than two images"),
        ("path_a,path_b\na.jpg,\n", "line 2: names fewer than two images"),
        ("a.jpg,b.jpg\nc.jpg,c.jpg\n", r"line 2: names c\.jpg twice"),
    ],
)
def test_what_is_no_pair(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_link_pairs(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_link_pairs(tmp_path / "nowhere.csv")
    (tmp_path / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="is no UTF-8 csv"):
        read_corrections(tmp_path / "picture.jpg")
