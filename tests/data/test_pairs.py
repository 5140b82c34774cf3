from dataclasses import replace

import numpy as np
import pytest

from facemetric.data.index import index_files
from facemetric.data.pair_images import resolve
from facemetric.data.pair_list import Pairs
from facemetric.data.pairs import read_pairs, write_pairs
from facemetric.errors import DataError


def written(tmp_path, text, name="pairs.txt"):
    file = tmp_path / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def lfw(folds=2, each=3):
    same = [f"Ann_Lee\t{i + 1}\t{i + 2}" for i in range(each)]
    different = [f"Ann_Lee\t{i + 1}\tBo\t{i + 11}" for i in range(each)]
    return [f"{folds}\t{each}", *(same + different) * folds]


def test_lfw(tmp_path):
    pairs = read_pairs(written(tmp_path, "\n".join(lfw())))
    assert len(pairs) == 12
    assert (pairs.paths_a[0], pairs.paths_b[0]) == ("Ann_Lee/Ann_Lee_0001", "Ann_Lee/Ann_Lee_0002")
    assert (pairs.paths_a[3], pairs.paths_b[5]) == ("Ann_Lee/Ann_Lee_0001", "Bo/Bo_0013")
    assert pairs.same.tolist() == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3
    assert pairs.fold.tolist() == [0] * 6 + [1] * 6


def test_lfw_development_sets_have_no_folds(tmp_path):
    pairs = read_pairs(written(tmp_path, "\r\n".join(["3", *lfw()[1:7]]) + "\r\n"))
    assert len(pairs) == 6
    assert pairs.fold is None
    spaced = read_pairs(written(tmp_path, "\n".join(["3", *lfw()[1:7]]).replace("\t", " ")))
    assert spaced.paths_a == pairs.paths_a


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (lfw()[:-1], r"11 pairs, the header promises 2 x 2 x 3 = 12; cut short"),
        ([*lfw()[:-1], "Bo\t1"], "line 13: 'Bo.t1'; needed"),
        ([*lfw()[:-1], "Bo\t1\tAnn_Lee\tx"], "line 13.*whole numbers"),
        ([lfw()[0], *lfw()[4:7], *lfw()[1:4], *lfw()[7:]], "3 pairs of one person, then 3 of two"),
    ],
)
def test_bad_lfw(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, "\n".join(lines)))


def test_two_line_form(tmp_path):
    text = "Ann_1.jpg 1\nAnn_2.jpg 1\nAnn_1.jpg 0\nBo_1.jpg 0\nBo_1.jpg 10\nBo_2.jpg 10\n"
    pairs = read_pairs(written(tmp_path, text))
    assert pairs.paths_a == ("Ann_1.jpg", "Ann_1.jpg", "Bo_1.jpg")
    assert pairs.paths_b == ("Ann_2.jpg", "Bo_1.jpg", "Bo_2.jpg")
    assert pairs.same.tolist() == [True, False, True]
    for bad, message in (
        (text + "Bo_9.jpg 1\n", "7 lines.*even number"),
        ("a.jpg 1\nb.jpg 0\n", "line 2: labels 1 and 0"),
        ("a.jpg 1\nb.jpg x\n", "line 2: 'b.jpg x'"),
    ):
        with pytest.raises(DataError, match=message):
            read_pairs(written(tmp_path, bad))


def test_csv_with_fold_groups_quotes_and_bom(tmp_path):
    text = '\ufeffimage1_path,age,image2_path,label,fold\n"a, b/1.jpg",old,ü/2.jpg,1,10\nc.jpg,,d.jpg,0,9\n\n'
    pairs = read_pairs(written(tmp_path, text, "p.csv"))
    assert pairs.paths_a == ("a, b/1.jpg", "c.jpg")
    assert pairs.paths_b == ("ü/2.jpg", "d.jpg")
    assert pairs.same.tolist() == [True, False]
    assert pairs.fold.tolist() == [1, 0]
    assert {k: v.tolist() for k, v in pairs.groups.items()} == {"age": ["old", ""]}
    other = read_pairs(written(tmp_path, "path_a,path_b,same\nx,y,True\nx,z,False\n", "q.csv"))
    assert other.same.tolist() == [True, False]
    assert (other.fold, other.groups) == (None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; needed"),
        ("image1_path,image2_path,label\n", "a header but no pairs"),
        ("image1_pth,image2_path,label\na,b,1\n", "no column image1_path.*did you mean 'image1_pth'"),
        ("image1_path,image2_path,label\na,b,2\n", "line 2: label '2'; write 1"),
        ("image1_path,image2_path,label\na,b\n", "line 2: no label; every pair needs one"),
        ("image1_path,image2_path,label\na,b,1\n,,\na,,1\n", "line 4: no image2_path; every pair needs one"),
        ("image1_path,image2_path,label,fold\na,b,1,1\na,b,1,\n", "line 3: no fold; every pair needs one"),
        ("\n\nimage1_path,image2_path,label\na,b, c,1\n", "line 4: 4 fields, the header has 3; quote"),
        ("image1_path,image2_path,label,fold\na,b,1,3\n", "one fold only"),
        ("image1_path,image2_path,label,label\na,b,1,1\n", "twice"),
        ("image1_path,path_a,image2_path,label\na,b,c,1\n", "occurs twice in .image1_path, path_a"),
        (b"image1_path\xff\xfe", "UTF-8"),
        ("some prose that is\nno pairs file\n", "no column image1_path, image2_path, label"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_pairs(written(tmp_path, text, "p.csv"))
    with pytest.raises(DataError, match="no such pairs file"):
        read_pairs(tmp_path / "absent.csv")


def test_csv_as_excel_writes_it(tmp_path):
    """`;`, a BOM, \\r\\n, other letter case, columns without a name, rows without a value, `\\` in paths."""
    rows = [
        "Image1_Path;Image2_Path;LABEL;Age;",
        "Ann\\1.jpg;Bo, B\\2.jpg;1;old;",
        ";;;;",
        ' c.jpg;"d;d.jpg";0;;',
        ";",
    ]
    pairs = read_pairs(written(tmp_path, "\ufeff" + "\r\n".join(rows) + "\r\n", "p.csv"))
    assert pairs.paths_a == ("Ann\\1.jpg", "c.jpg")
    assert pairs.paths_b == ("Bo, B\\2.jpg", "d;d.jpg")
    assert pairs.same.tolist() == [True, False]
    assert {k: v.tolist() for k, v in pairs.groups.items()} == {"Age": ["old", ""]}
    for name in ("Ann/1.jpg", "Bo, B/2.jpg", "c.jpg", "d;d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    index = index_files(pairs.paths(), tmp_path)
    assert [index.read(int(row)).decode() for rows in resolve(pairs, index) for row in rows] == [
        "Ann/1.jpg",
        "c.jpg",
        "Bo, B/2.jpg",
        "d;d.jpg",
    ]
    assert index.identities == (".", "Ann", "Bo, B")


def test_a_csv_parted_by_tabs(tmp_path):
    text = "image1_path\timage2_path\tlabel\tfold\tage\na, b.jpg\tc;d.jpg\t1\t1\told\nx\ty\t0\t2\t\n"
    for name in ("p.tsv", "p.csv", "p.txt"):
        pairs = read_pairs(written(tmp_path, text, name))
        assert (pairs.paths_a, pairs.paths_b) == (("a, b.jpg", "x"), ("c;d.jpg", "y"))
        assert (pairs.same.tolist(), pairs.fold.tolist()) == ([True, False], [0, 1])
        assert pairs.groups["age"].tolist() == ["old", ""]
    with pytest.raises(DataError, match=r"p.tsv: no column label among 'image1_path, image2_path'"):
        read_pairs(written(tmp_path, "image1_path\timage2_path\na\tb\n", "p.tsv"))


def test_pairs_keep_each_path_once_and_show_in_a_line(tmp_path):
    lines = "".join(f"a{i % 7}.jpg,b{i % 5}.jpg,{i % 2},{i % 3}\n" for i in range(70))
    pairs = read_pairs(written(tmp_path, "image1_path,image2_path,label,fold\n" + lines, "p.csv"))
    assert len(pairs.names) == 12
    assert len(pairs) == 70
    assert pairs.paths() == list(pairs.names)
    assert repr(pairs) == f"Pairs(35 genuine, 35 impostor, 3 folds, of {str(tmp_path / 'p.csv')!r})"
    some = pairs.select(np.array([0, 7, 14]))
    assert some.paths() == ["a0.jpg", "b0.jpg", "b2.jpg", "b4.jpg"]
    assert (some.paths_a, some.fold.tolist()) == (("a0.jpg",) * 3, [0, 1, 2])


def test_write_reads_back(tmp_path):
    listed = Pairs.of(("a,b", "c"), ('"q"', "d"), np.array([True, False]), np.array([1, 0]))
    pairs = replace(listed, groups={"g": np.array(["x", "y"])})
    write_pairs(tmp_path / "p.csv", pairs)
    back = read_pairs(tmp_path / "p.csv")
    assert (back.paths_a, back.paths_b) == (pairs.paths_a, pairs.paths_b)
    assert (back.same == pairs.same).all()
    assert (back.fold == pairs.fold).all()
    assert back.groups["g"].tolist() == ["x", "y"]
    assert [f.name for f in tmp_path.iterdir()] == ["p.csv"]


def test_numbers_and_fields_beyond_all_reason(tmp_path):
    with pytest.raises(DataError, match=r"p.txt: holds a number of over 18 digits; needed labels"):
        read_pairs(written(tmp_path, "2\t" + "9" * 30 + "\n", "p.txt"))
    long = "image1_path,image2_path,label\na,b,1\na," + "b" * 200_000 + ",1\n"
    with pytest.raises(DataError, match=r"p.csv line 3: is no csv \(field larger .*; needed image1_path"):
        read_pairs(written(tmp_path, long, "p.csv"))
