"""What can be wrong with a folder, a csv or a tar, and what the user is told."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facemetric.data.index import read_index
from facemetric.errors import DataError


def put(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tar_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(b"d" * member.size))
    return path


def member(name: str, size: int = 700, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def message(data: object) -> str:
    with pytest.raises(DataError) as caught:
        read_index(data)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- folders ----


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file or folder" in message(tmp_path / "not_there")
    assert "holds no image" in message(tmp_path)
    put(tmp_path / "text.txt")
    assert "unknown kind of data" in message(tmp_path / "text.txt")


def test_images_without_identity_folders(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "readme.txt")
    said = message(tmp_path)
    assert "1 images outside an identity's folder, 1 files that are no images" in said
    assert "identity/image.jpg" in said


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    for name in ("anna/a.jpg", "anna/notes.txt", "anna/.DS_Store", "anna/._a.jpg", "top.jpg", ".git/x.jpg"):
        put(tmp_path / name)
    os.symlink("gone.jpg", tmp_path / "anna/broken.jpg")
    index = read_index(tmp_path)
    assert [index.name(i) for i in range(len(index))] == ["anna/a.jpg"]
    assert index.ignored == 6
    said = " ".join(index.notes)
    for part in ("3 files that are no images", "notes.txt", "1 broken links", "1 hidden folders", "top.jpg"):
        assert part in said
    assert index.select(index.identity == 0).notes == index.notes


def test_only_some_examples_are_named(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg")
    for n in range(7):
        put(tmp_path / f"anna/{n}.txt")
    (note,) = read_index(tmp_path).notes
    assert note == (
        "7 files that are no images passed over:"
        " anna/0.txt, anna/1.txt, anna/2.txt, anna/3.txt, anna/4.txt, ..."
    )


def test_zero_byte_images_stay_for_the_list_of_bad_ones(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg", b"")
    assert read_index(tmp_path).location(0).size == 0


def test_pipes_and_empty_folders(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg")
    put(tmp_path / "bob/notes.txt")
    os.mkfifo(tmp_path / "anna/b.jpg")
    os.mkfifo(tmp_path / "c.tar")
    index = read_index(tmp_path / "anna/..")
    assert index.identities == ("anna",)
    assert "1 pipes and devices passed over: anna/b.jpg" in index.notes
    assert "1 folders without an image passed over: bob" in index.notes
    assert "no such file or folder" in message(tmp_path / "c.tar")


def test_links_and_loops(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "anna/a.jpg")
    put(data / "bob/b.jpg")
    put(tmp_path / "elsewhere/c.jpg")
    os.symlink("../anna", data / "anna/loop")
    os.symlink("self", data / "anna/self")
    os.symlink("top", data / "top")
    os.symlink("..", data / "bob/up")
    os.symlink("/", data / "bob/root")
    os.symlink(tmp_path / "elsewhere", data / "carl")
    index = read_index(data)
    assert [index.name(i) for i in range(len(index))] == ["anna/a.jpg", "bob/b.jpg", "carl/c.jpg"]
    assert "3 links to a folder already walked" in " ".join(index.notes)


@pytest.mark.parametrize("name", ["a b c", "ünïcødé 人", "x" * 250, "=,;\"'", "new\nline", "-rf", "#hash"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    put(tmp_path / name / f"{name[:200]}.jpg", b"here")
    index = read_index(tmp_path)
    assert index.identities == (name,)
    assert index.name(0) == f"{name}/{name[:200]}.jpg"
    assert index.read(0) == b"here"
    assert index.find(index.name(0)) == 0


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(path)
    with open(path + b"/\xe9.jpg", "wb") as file:
        file.write(b"here")
    index = read_index(tmp_path)
    assert index.read(0) == b"here"
    assert len(index.fingerprint) == 64


def test_an_image_that_goes_away(tmp_path: Path) -> None:
    path = put(tmp_path / "anna/a.jpg")
    index = read_index(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        index.read(0)


def test_a_tar_that_shrinks(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", member("anna/a.jpg", 5000))
    index = read_index(tar)
    os.truncate(tar, 1000)
    with pytest.raises(OSError, match="cut short since"):
        index.read(0)


def test_shards_beside_folders(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", member("anna/a.jpg"))
    put(tmp_path / "bob/b.jpg")
    assert "both .tar shards and folders" in message(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_folders_at_any_depth_are_passed_over(tmp_path: Path, packed: bool) -> None:
    files = [
        "anna/1.jpg",
        "anna/.thumbnails/1.jpg",
        "anna/.thumbnails/deep/2.jpg",
        "bob/a.b/.c.d.jpg",
        "bob/1.jpg",
    ]
    files += [".trash/1.jpg", ".trash/2.jpg"]
    if packed:
        data = tar_of(tmp_path / "a.tar", *map(member, files))
    else:
        data = tmp_path / "a"
        for name in files:
            put(data / name)
    index = read_index(data)
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "bob/1.jpg"]
    assert sorted(index.notes) == [
        "1 files that are no images passed over: bob/a.b/.c.d.jpg",
        f"2 hidden folders passed over: {'anna/.thumbnails, .trash' if packed else '.trash, anna/.thumbnails'}",
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_the_folder_above_train_and_test_is_told(tmp_path: Path, packed: bool) -> None:
    files = [f"{part}/{who}/1.jpg" for part in ("test", "train") for who in ("anna", "bob")]
    for name in files:
        put(tmp_path / "a" / name)
    data = tar_of(tmp_path / "a.tar", *map(member, files)) if packed else tmp_path / "a"
    assert read_index(data).notes == (
        f"{data}: none of its 2 identities (test, train) has an image of its own, only folders as 'test/anna'; "
        "if these are the identities, name the folders above them, or each as a source",
    )
    assert "'test/anna'" in read_index(f"x={data}").notes[0]
    put(tmp_path / "a" / "train" / "1.jpg")
    assert read_index(tmp_path / "a").notes == ()
    (tmp_path / "l.csv").write_text("path,identity\na/train/bob/1.jpg,bob\na/train/anna/1.jpg,anna\n")
    assert read_index(tmp_path / "l.csv").notes == ()


@pytest.mark.parametrize("packed", [False, True])
def test_photographs_that_are_not_read_are_told(tmp_path: Path, packed: bool) -> None:
    files = ["anna/1.HEIC", "anna/2.avif", "anna/._3.heic"]
    if packed:
        data = tar_of(tmp_path / "a.tar", *map(member, files))
    else:
        for name in files:
            put(tmp_path / "a" / name)
        data = tmp_path / "a"
    said = "2 HEIC or AVIF files, which are not read (convert them to JPEG)"
    assert said in message(data)
    assert "1 files that are no images" in message(data)
    put(tmp_path / "b" / "anna" / "1.jpg")
    put(tmp_path / "b" / "anna" / "2.heif")
    assert read_index(tmp_path / "b").notes == (
        "1 HEIC or AVIF files, which are not read (convert them to JPEG), passed over: anna/2.heif",
    )


# ---- csv ----


def test_csv_faults(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    table = tmp_path / "t.csv"
    for text, expected in [
        ("", "no column 'path'"),
        ("pth,identity\na.jpg,x\n", "did you mean 'pth'"),
        ("path,person\na.jpg,x\n", "no column 'identity'"),
        ("path,identity\n", "holds no image"),
        ("path,identity\na.jpg,\n", "line 2: an empty identity"),
        ("path,identity\na.jpg\n", "line 2: an empty identity"),
        ("path,identity\n,x\n", "line 2: an empty path"),
        ("path,identity\nb.jpg,x\na.jpg,x\nc.jpg,x\n", "2 paths are no files"),
        ("path,identity\na.jpg,x\n.,x\n", "1 paths are no files"),
        ("path,identity\na.jpg,x\na.jpg,y\n", "listed for both 'x' and 'y'"),
        ("path,identity\n\0,x\n", "t.csv"),
    ]:
        table.write_text(text)
        assert expected in message(table)
    table.write_bytes(b"path,identity\n\xff\xfe,x\n")
    assert "no UTF-8 csv" in message(table)
    table.write_bytes(b"path,identity\n" + b"x" * 200_000 + b",x\n")
    assert "line 2: is no csv (field larger than" in message(table)
    table.write_text("path,identity\n\na.jpg,x\na, b.jpg,x\n")
    assert "line 4: 3 fields, the header has 2; quote a field that holds the separator" in message(table)
    table.write_text("path,note,identity,Note\na.jpg,1,x,2\n")
    assert "a column stands twice in 'path, note, identity, Note'" in message(table)


def test_csv_as_windows_and_excel_write_it(tmp_path: Path) -> None:
    """`;`, a BOM, \\r\\n, other letter case, rows and columns that are empty, `\\` in paths."""
    for name in ("anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"):
        put(tmp_path / name, name.encode())
    rows = ["Path;Identity;Age;", "anna\\1.jpg;anna;old;", ";;;", "odd\\3.jpg;carl", "bob/2.jpg;bob;;"]
    table = put(tmp_path / "t.csv", ("\ufeff" + "\r\n".join(["", *rows]) + "\r\n;;\r\n").encode())
    index = read_index(table)
    assert [index.name(i) for i in range(3)] == ["anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"]
    assert index.identities == ("anna", "bob", "carl")
    assert [index.read(i).decode() for i in range(3)] == ["anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"]
    assert index.groups()["Age"].tolist() == ["old", "", ""]


def test_csv_listed_twice_and_absolute(tmp_path: Path) -> None:
    image = put(tmp_path / "images/a.jpg", b"here")
    table = put(
        tmp_path / "t.csv", f"\ufeffidentity,path\nx,images/a.jpg\nx,images/a.jpg\ny,{image}\n".encode()
    )
    index = read_index(table)
    assert [index.name(i) for i in range(len(index))] == ["images/a.jpg", str(image)]
    assert index.ignored == 1
    assert index.read(0) == index.read(1) == b"here"
    named = read_index(f"n={table}")
    assert named.location(1).file == str(image)
    assert named.identities == ("n/x", "n/y")


# ---- tars ----


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        (member("../evil.jpg"), "climbs with .."),
        (member("anna/../../evil.jpg"), "climbs with .."),
        (member("/etc/evil.jpg"), "absolute"),
        (member("anna/l.jpg", 0, tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (member("anna/h.jpg", 0, tarfile.LNKTYPE, "anna/a.jpg"), "hard link"),
        (member("anna/d.jpg", 0, tarfile.CHRTYPE), "device"),
        (member("anna/p.jpg", 0, tarfile.FIFOTYPE), "pipe"),
        (member("anna/s.jpg", 0, tarfile.GNUTYPE_SPARSE), "sparse"),
        (member("anna/v.jpg", 0, b"V"), "kind b'V'"),
    ],
)
def test_members_that_are_refused(tmp_path: Path, bad: tarfile.TarInfo, expected: str) -> None:
    said = message(tar_of(tmp_path / "a.tar", member("anna/a.jpg"), bad))
    assert "1 members are no plain files" in said
    assert f"{bad.name} ({expected})" in said


def test_folders_and_other_files_in_a_tar(tmp_path: Path) -> None:
    parts = [member("anna", 0, tarfile.DIRTYPE), member("anna/a.jpg"), member("x.jpg"), member("anna/t.txt")]
    index = read_index(tar_of(tmp_path / "a.tar", *parts))
    assert index.name(0) == "anna/a.jpg"
    assert index.ignored == 2


def test_a_member_written_again_replaces_the_first(tmp_path: Path) -> None:
    index = read_index(tar_of(tmp_path / "a.tar", member("anna/a.jpg", 700), member("anna/a.jpg", 3)))
    assert len(index) == 1
    assert index.read(0) == b"ddd"
    assert "1 images listed twice" in index.notes[0]


def test_tar_cut_short_at_every_block(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", member("anna/a.jpg"), member("anna/b.jpg")).read_bytes()
    # Two members of a header and two blocks each, then the end marker.
    for size in [*range(0, 6 * 512 + 1, 256), 1, 511, 513, 6 * 512 - 1]:
        cut = put(tmp_path / "cut.tar", whole[:size])
        said = message(cut)
        complete = (size >= 512 + 700) + (size >= 4 * 512 + 700)
        assert f"cut short at byte {size}, {complete} members are whole" in said, size
    read_index(put(tmp_path / "cut.tar", whole[: 7 * 512]))


def test_tars_joined_by_cat(tmp_path: Path) -> None:
    one = tar_of(tmp_path / "a.tar", member("anna/a.jpg")).read_bytes()
    assert "goes on behind its end marker" in message(put(tmp_path / "b.tar", one + one))


def test_no_tar_and_damaged_tar(tmp_path: Path) -> None:
    assert "is no tar" in message(put(tmp_path / "a.tar", b"hello" * 1000))
    whole = bytearray(tar_of(tmp_path / "b.tar", member("anna/a.jpg"), member("anna/b.jpg")).read_bytes())
    whole[3 * 512 + 3] ^= 1  # a letter of the second name
    assert "is damaged at byte 1536, after 1 whole members" in message(put(tmp_path / "b.tar", bytes(whole)))
    assert "holds no image" in message(tar_of(tmp_path / "c.tar"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_packed_tars(tmp_path: Path, mode: str) -> None:
    for name in ("a.tar." + mode[2:], "a.tar"):
        with tarfile.open(tmp_path / name, mode) as tar:
            tar.addfile(member("anna/a.jpg"), io.BytesIO(b"d" * 700))
        assert "unpack it to" in message(tmp_path / name)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (header(b"a/b.jpg", b"-0000000012\0"), "is no tar"),
        (header(b"a/b.jpg", b"\xff" + b"\xff" * 11), "is no tar"),
        (header(b"a/b.jpg", b"\x80" + b"\x7f" * 11), "cut short"),
        (header(b"a/b.jpg", b"77777777777\0"), "cut short"),
        (header(b"long", b"77777777777\0", b"L"), "-byte name"),
        (header(b"pax", b"00000000010\0", b"x") + b"9 path=abc".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000020\0", b"x") + b"0 path=a\n".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000020\0", b"x") + b"xx path=a\n".ljust(512, b"\0"), "pax header"),
        (header(b"pax", b"00000000014\0", b"x") + b"12 size=-12\n".ljust(512, b"\0"), "pax header"),
    ],
)
def test_hostile_headers(tmp_path: Path, start: bytes, expected: str) -> None:
    assert expected in message(put(tmp_path / "a.tar", start + bytes(4096)))


def test_pax_size_and_global_header(tmp_path: Path) -> None:
    blocks = [
        header(b"g", b"00000000013\0", b"g") + b"11 a=bcde\n\0".ljust(512, b"\0"),
        header(b"x", b"00000000012\0", b"x") + b"10 size=3\n".ljust(512, b"\0"),
        header(b"a/b.jpg", b"00000000000\0") + b"abc".ljust(512, b"\0"),
        bytes(1024),
    ]
    index = read_index(put(tmp_path / "a.tar", b"".join(blocks)))
    assert index.read(0) == b"abc"


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6 * 512), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_tar_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    whole = bytearray(
        tar_of(tmp_path / "a.tar", member("anna/a.jpg"), member("bob/" + "n" * 120 + ".jpg")).read_bytes()
    )
    for place, value in changes:
        whole[place] = value
    path = put(tmp_path / "b.tar", bytes(whole))
    try:
        index = read_index(path)
    except DataError:
        return
    for i in range(len(index)):
        assert len(index.read(i)) == index.location(i).size


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_a_csv_of_any_bytes_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "a.csv", b"path,identity\n" + data)
    with contextlib.suppress(DataError):
        read_index(path)
