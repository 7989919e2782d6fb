"""Checks of text files: chunks, huge cells, many blank lines, damage, disks."""

import errno
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchrun.errors import InputError, StorageError
from batchrun.job import CsvOptions
from batchrun.table.textfiles import check_csv, check_json_lines
from batchrun.table.textscan import CsvScan, JsonLinesScan

LINES = st.lists(st.sampled_from(["1,2", '"a""b","c\nd"', '"",', "", '5" 6",x', "é,中", "1,2\r"]), max_size=12)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def scanned(data: bytes, size: int) -> tuple[str, bytes, bool]:
    """Scan data in pieces; give the message or nothing, what is kept, and whether lines were blank."""
    scan = CsvScan("x.csv", ",", CsvOptions())
    kept: list[bytes] = []
    try:
        blank = scan.run(pieces(data, size), kept.append)
    except InputError as error:
        return str(error), b"", False
    return "", b"".join(kept), blank


@given(lines=LINES, flaw=st.sampled_from(["", '"open', "one", "1,2,3", '"x"y,2', '3",4']), size=st.integers(1, 9))
def test_where_a_chunk_ends_changes_nothing(lines: list[str], flaw: str, size: int) -> None:
    """The same columns, flaws and kept bytes come out however the file arrives."""
    data = ("a,b\n" + "".join(f"{line}\n" for line in [*lines, flaw, *lines])).encode()
    assert scanned(data, size) == scanned(data, len(data))


def test_the_line_of_a_flaw_counts_all_lines_before_it() -> None:
    """Line numbers hold behind line breaks in cells, blank lines and chunks."""
    random.seed(1)
    lines = [random.choice(["1,2", '"x,\ny",z', ""]) for _ in range(5000)]  # noqa: S311  (no secret)
    before = "a,b\n" + "\n".join(lines) + "\n"
    message, _, _ = scanned((before + "short\n").encode(), 1000)
    assert message.startswith(f"x.csv:{before.count(chr(10)) + 1}: 1 cell where the header has 2")


def test_blank_lines_are_left_out_of_what_is_kept() -> None:
    """Blank lines vanish, also at the end and with CRLF; blank lines inside a quoted cell stay."""
    assert scanned(b'a,b\n\n1,"\n\n"\n\r\n2,3\n\n', 4) == ("", b'a,b\n1,"\n\n"\n2,3\n', True)


@pytest.mark.parametrize(
    ("line", "lone"),
    [
        (r"\ud83d\ude00", False),
        (r"\uD83D\uDE00", False),
        (r"\ud83d", True),
        (r"\ude00", True),
        (r"\ud83d\ud83d\ude00", True),
        (r"\\ud83d", False),
        (r"\\\ud83d", True),
        (r"\u00e9", False),
    ],
)
def test_half_of_a_surrogate_pair_is_found(line: str, *, lone: bool) -> None:
    """What Polars would turn into a NUL is refused, and nothing else is; Python's own decoder agrees."""
    text = f'{{"a":"{line}"}}\n'
    assert any(0xD800 <= ord(char) < 0xE000 for char in json.loads(text)["a"]) is lone
    try:
        JsonLinesScan("x.jsonl").run(pieces(text.encode(), 7))
    except InputError:
        refused = True
    else:
        refused = False
    assert refused is lone


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    """A cut gzip, a cut zstd file and a name that lies end with one line."""
    whole = gzip.compress(random.Random(1).randbytes(5000).hex().encode())  # noqa: S311  (no secret)
    for name, data in (("x.csv.gz", whole[:-100]), ("y.csv.gz", whole[:500]), ("z.csv.zst", b"a,b\n1,2\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"^{name}: can't be read or decompressed"):
            check_csv(tmp_path / name, name, CsvOptions(), tmp_path)


def test_a_full_disk_stops_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that can't be written is a problem of the disk, not of the input."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "x.csv").write_bytes("a\n1\n".encode("utf-16"))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(StorageError, match=r"copy of x\.csv can't be written: No space left on device; set TMPDIR"):
        check_csv(tmp_path / "x.csv", "x.csv", CsvOptions(), tmp_path)


def test_a_clean_file_is_read_in_place(tmp_path: Path) -> None:
    """UTF-8 files with LF, CRLF, lone CR or a BOM are not copied, compressed ones neither."""
    for name, data in (
        ("lf.csv", b"a,b\n1,2\n"),
        ("crlf.csv", b"a,b\r\n1,2\r\n"),
        ("cr.csv", b"a,b\r1,2\r"),
        ("bom.csv", b"\xef\xbb\xbfa,b\n1,2\n"),
        ("gz.csv.gz", gzip.compress(b"a,b\n1,2\n")),
    ):
        (tmp_path / name).write_bytes(data)
        assert check_csv(tmp_path / name, name, CsvOptions(), tmp_path).path == tmp_path / name
    (tmp_path / "x.jsonl").write_bytes(b'{"b":1,"a":2}\n')
    found = check_json_lines(tmp_path / "x.jsonl", "x.jsonl", tmp_path)
    assert (found.path, found.fields) == (tmp_path / "x.jsonl", ("b", "a"))


def test_a_huge_cell_costs_one_pass() -> None:
    """A cell of many chunks is scanned about twice in all, not once for each chunk."""
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        yield b'a,b\n1,"'
        for _ in range(4000):
            read += 1
            yield b"x" * 1000
        yield b'"\n'

    scan = CsvScan("x.csv", ",", CsvOptions())
    looks: list[int] = []
    whole = scan._odd_record

    def counted(buffer: bytes, start: int, *, final: bool) -> int | None:
        looks.append(len(buffer))
        return whole(buffer, start, final=final)

    scan._odd_record = counted  # type: ignore[method-assign]
    scan.run(chunks())
    assert read == 4000
    assert sum(looks) < 3 * 4_000_000
