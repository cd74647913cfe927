"""Tars and zips: read as by their own libraries, and damage is reported."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnvis_cli.dataset import containers
from cnnvis_cli.dataset.containers import members, read_member
from cnnvis_cli.dataset.kinds import Found, Unreadable
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.errors import StorageError, UsageError

CONTENT = {f"class{n % 3}/{n:02d}.jpg": bytes([n]) * (n * 397) for n in range(12)}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def tar(path: Path, content: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


class Pipe(io.RawIOBase):
    """A stream that cannot seek, so that a zip's CRCs follow its members."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        return self.file.write(data)  # type: ignore[arg-type]

    def close(self) -> None:
        self.file.close()
        super().close()


def zipped(path: Path, content: dict[str, bytes], method: int, streamed: bool = False) -> Path:
    with (
        Pipe(path) if streamed else path.open("wb") as file,
        zipfile.ZipFile(file, "w", method) as archive,
    ):
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def read(path: Path) -> dict[str, bytes]:
    """Return every image of a container; of equal names the last one."""
    return {
        name: read_member(path.parent, f"{path.name}/{name}", place, size)
        for name, size, place, _ in members(path, Found())
    }


@pytest.mark.parametrize("form", FORMATS)
def test_a_tar_is_read_as_it_was_written(form: str, tmp_path: Path) -> None:
    assert read(tar(tmp_path / "a.tar", CONTENT, FORMATS[form])) == CONTENT


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_long_and_odd_names(form: str, tmp_path: Path) -> None:
    content = {"d" * 99 + "/" + "é" * 150 + ".jpg": b"long", "a\udcff.jpg": b"no UTF-8"}
    assert read(tar(tmp_path / "a.tar", content, FORMATS[form])) == content


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_zip_is_read_as_it_was_written(method: int, streamed: bool, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", CONTENT, method, streamed)
    assert read(path) == CONTENT
    path.write_bytes(b"#!/bin/sh, as of an archive that unpacks itself\n" + path.read_bytes())
    assert read(path) == CONTENT


@given(
    st.dictionaries(st.text("abc/", min_size=1, max_size=6), st.binary(max_size=2000), max_size=6),
    st.sampled_from(["tar", "stored", "deflated"]),
)
@settings(deadline=None, max_examples=40)
def test_whatever_is_packed_comes_out(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, bytes], kind: str
) -> None:
    content = {name + "x.jpg": data for name, data in content.items()}
    folder = tmp_path_factory.mktemp("packed")
    if kind == "tar":
        path = tar(folder / "a.tar", content)
    else:
        method = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        path = zipped(folder / "a.zip", content, method)
    assert read(path) == content


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_only_images_that_show_are_members(kind: str, tmp_path: Path) -> None:
    hidden = ("notes.txt", ".a.jpg", ".git/a.jpg", "b/__MACOSX/._c.jpg", "__MACOSX/c.jpg", "jpg")
    content = dict.fromkeys((*hidden, "./a/1.JPG", "../2.png", "/x/3.gif"), b"x")
    path = tmp_path / f"a.{kind}"
    if kind == "tar":
        tar(path, content)
    else:
        zipped(path, content, zipfile.ZIP_STORED)
    assert [name for name, *_ in members(path, Found())] == ["a/1.JPG", "../2.png", "/x/3.gif"]


def test_links_devices_and_folders_are_no_images(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number, kind in enumerate((b"1", b"2", b"3", b"4", b"5", b"6")):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.type, member.linkname = kind, "6.jpg"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("6.jpg"))
    assert [name for name, *_ in members(tmp_path / "a.tar", Found())] == ["6.jpg"]


def test_links_in_a_zip_are_no_images(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "image.jpg")
        archive.writestr("image.jpg", b"x")
    assert [name for name, *_ in members(tmp_path / "a.zip", Found())] == ["image.jpg"]


def test_the_last_of_equal_names_is_meant(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"x.jpg": b"old", "y.jpg": b"y"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("x.jpg")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"newer"))
    manifest = Manifest.scan(path)
    assert [manifest.read(index) for index in range(len(manifest))] == [b"newer", b"y"]
    assert manifest.sizes.tolist() == [5, 1]


def cut_in_content(content: bytes) -> bytes:
    return content[: len(content) * 2 // 3 + 100]


def broken_header(content: bytes) -> bytes:
    place = content.index(b"class1/07.jpg")
    return content[:place] + b"K" + content[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut in a content": cut_in_content,
    "cut between members": lambda content: content[: content.index(b"class1/07.jpg")],
    "cut in a header": lambda content: content[: content.index(b"class1/07.jpg") + 99],
    "without an end mark": lambda content: content[: content.index(b"\x0b" * 512) + 397 * 11 + 241],
    "broken header": broken_header,
    "two joined": lambda content: content + content,
    "compressed": gzip.compress,
    "empty": lambda content: b"",
    "text": lambda content: b"not a tar" * 100,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_tar_is_refused_with_the_place(kind: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "shard.tar", CONTENT, tarfile.USTAR_FORMAT)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(UsageError, match=r"shard\.tar: is .* at byte \d+ .*copy it again"):
        list(members(path, Found()))


def test_a_tar_that_leads_round_for_ever_is_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "shard.tar", {"a.jpg": b"a", "b.jpg": b"b"}, tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    header = bytearray(content[1024:1536])
    header[124:136] = (-1024 + (1 << 96)).to_bytes(12, "big")  # a negative size in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[1024:1536] = header
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"at byte 1024 .*no end"):
        list(members(path, Found()))


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [b"L", b"x"])
def test_a_name_of_gigabytes_is_never_read(kind: bytes, tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with path.open("wb") as file:
        file.write(header("name", 1 << 40, kind))
        file.truncate((1 << 40) + 8192)  # bytes, all of them a hole
    with pytest.raises(UsageError, match=rf"a header of {1 << 40} bytes.*copy it again"):
        list(members(path, Found()))


def test_headers_that_each_announce_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes((header("x", 9, b"L") + b"name".ljust(512, b"\0")) * 3000 + bytes(1024))
    with pytest.raises(UsageError, match=r"recursion.*copy it again"):
        list(members(path, Found()))


def test_an_image_with_holes_in_it_is_not_left_out_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.write_bytes(header("holes.jpg", 0, b"S") + bytes(1024))
    with pytest.raises(UsageError, match=r"holes\.jpg is sparse; pack it without --sparse"):
        list(members(path, Found()))


def test_a_list_of_members_of_gigabytes_is_never_read(tmp_path: Path) -> None:
    length, path = (4 << 30) - 2, tmp_path / "a.zip"
    with path.open("wb") as file:
        file.truncate(length)
        file.seek(length)
        file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 1, 1, length, 0, 0))
    with pytest.raises(UsageError, match=f"a header of {length} bytes"):
        list(members(path, Found()))


@given(st.data())
@settings(deadline=None, max_examples=150)
def test_a_mutated_container_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    content = dict(list(CONTENT.items())[:4])
    if data.draw(st.booleans()):
        path = tar(folder / "mutated.tar", content)
    else:
        path = zipped(folder / "mutated.zip", content, zipfile.ZIP_DEFLATED)
    packed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed)) | st.just(len(packed)))])
    with contextlib.suppress(UsageError, Unreadable):
        read(path)


def zip_with(path: Path, *changes: tuple[bytes, int, bytes]) -> Path:
    """Return a zip of one 1000-byte member; changes are (record, offset in it, new bytes)."""
    zipped(path, {"image.jpg": b"content " * 125}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    for record, offset, new in changes:
        start = content.index(record) + offset
        content[start : start + len(new)] = new
    path.write_bytes(content)
    return path


LOCAL, CENTRAL = b"PK\3\4", b"PK\1\2"
LIES = {
    "is encrypted": ((LOCAL, 6, b"\1\0"), (CENTRAL, 8, b"\1\0")),
    "is compressed by method 12": ((LOCAL, 8, b"\14\0"), (CENTRAL, 10, b"\14\0")),
    "holds more than the 10 bytes listed": ((CENTRAL, 24, struct.pack("<I", 10)),),
    "holds 1000 bytes, not the 2000 listed": ((CENTRAL, 24, struct.pack("<I", 2000)),),
    "too large: 4294967294 bytes": ((CENTRAL, 24, struct.pack("<I", (1 << 32) - 2)),),
    "is damaged in its zip: wrong CRC": ((LOCAL, 14, b"abcd"),),
    "is damaged in its zip: Error": ((LOCAL, 39, b"\xff" * 8),),
    "its zip has no member there": ((LOCAL, 0, b"PKPK"),),
}


@pytest.mark.parametrize("reason", LIES)
def test_a_zip_that_lies_is_unreadable_with_the_reason(reason: str, tmp_path: Path) -> None:
    path = zip_with(tmp_path / "a.zip", *LIES[reason])
    (member,) = members(path, Found())
    assert member[0] == "image.jpg"
    with pytest.raises(Unreadable, match=reason):
        read(path)


def test_a_zip_that_tells_more_bytes_than_there_can_be_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"image.jpg": b"x"}, zipfile.ZIP_STORED)
    content, long = bytearray(path.read_bytes()), struct.pack("<HHQ", 1, 8, (1 << 63) + 5)
    place, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    content[end + 12] += len(long)  # the length of the list of members
    content[place + 24 : place + 28] = b"\xff" * 4  # the size, which is then in an extra field
    content[place + 30] = len(long)
    content[place + 55 : place + 55] = long
    path.write_bytes(content)
    with pytest.raises(UsageError, match="absurd sizes"):
        list(members(path, Found()))


def test_a_member_that_goes_on_without_a_byte_is_given_up(tmp_path: Path) -> None:
    empty = b"\0\0\0\xff\xff"  # a stored block of nothing, which is not the last one
    path = zip_with(tmp_path / "a.zip")
    content = path.read_bytes()
    path.write_bytes(content[:39] + empty * 600_000 + content[39:])
    with pytest.raises(Unreadable, match="it has no end"):
        read_member(tmp_path, "a.zip/image.jpg", 0, 1000)


def test_an_honest_zip_is_read(tmp_path: Path) -> None:
    assert read(zip_with(tmp_path / "a.zip")) == {"image.jpg": b"content " * 125}


def test_a_bomb_is_never_unpacked_beyond_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "LARGEST_IMAGE", 1000)
    path = zipped(tmp_path / "a.zip", {"a.jpg": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(Unreadable, match="too large"):
        read(path)
    with pytest.raises(Unreadable, match="more than the 1000 bytes"):
        read_member(tmp_path, "a.zip/a.jpg", 0, 1000)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_container_that_changes_is_not_mistaken_for_the_old_one(
    kind: str, tmp_path: Path
) -> None:
    path, other = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    for place, content in ((path, b"one"), (other, b"two")):
        if kind == "tar":
            tar(place, {"x.jpg": content})
        else:
            zipped(place, {"x.jpg": content}, zipfile.ZIP_STORED)
    assert read(path) == {"x.jpg": b"one"}
    other.replace(path)
    assert read(path) == {"x.jpg": b"two"}
    found = list(members(path, Found()))
    os.truncate(path, 32)
    with pytest.raises(Unreadable, match="its container ends early"):
        read_member(tmp_path, f"a.{kind}/x.jpg", found[0][2], found[0][1])
    path.unlink()
    with pytest.raises(StorageError, match="no such file"):
        read_member(tmp_path, f"a.{kind}/x.jpg", found[0][2], found[0][1])


def test_few_containers_stay_open(tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    before = len(list(descriptors.iterdir()))
    for number in range(3 * containers.OPEN):
        read(tar(tmp_path / f"{number}.tar", {"x.jpg": b"x"}))
    assert len(list(descriptors.iterdir())) <= before + containers.OPEN


def test_a_member_without_a_name_is_refused(tmp_path: Path) -> None:
    path = zip_with(tmp_path / "a.zip", (b"PK\1\2", 46, b"\0"))
    with pytest.raises(UsageError, match="a file in it has no name"):
        list(members(path, Found()))
