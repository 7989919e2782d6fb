"""The corpus of nasty files, made by code: each is read equal cell by cell, or refused with its one line."""

import gzip
from dataclasses import dataclass, field
from typing import Any

from backports import zstd

Cells = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Nasty:
    """A file's bytes and what must come of them: `rows`, or the `line` that refuses it; `csv` holds options.

    `framed` are the rows as the output's types hold them, where these differ.
    """

    name: str
    data: bytes
    rows: Cells | None = None
    line: str = ""
    framed: Cells | None = None
    columns: tuple[str, ...] = ("a", "b")
    csv: dict[str, Any] = field(default_factory=dict)


_BIG5 = "a,b\n中文,字\n".encode("big5")
_QUOTED = b'a,b\n1,"x\ny, ""z"""\n2,\n'
_QUOTED_ROWS: Cells = [("1", 'x\ny, "z"'), ("2", None)]

READ = (
    Nasty("bom.csv", b"\xef\xbb\xbfa,b\n1,2\n", [("1", "2")]),
    Nasty("bom_quoted.csv", b'\xef\xbb\xbf"a","b"\n1,2\n', [("1", "2")]),
    Nasty("crlf.csv", b'a,b\r\n1,"2\r\n3"\r\n4,5\r\n', [("1", "2\r\n3"), ("4", "5")]),
    Nasty("lone_cr.csv", b'a,b\r1,"2\r\n3"\r4,5\r', [("1", "2\r\n3"), ("4", "5")]),
    Nasty("no_last_newline.csv", b"a,b\n1,2", [("1", "2")]),
    Nasty("line_breaks.csv", _QUOTED, _QUOTED_ROWS),
    Nasty("line_breaks.csv.gz", gzip.compress(_QUOTED), _QUOTED_ROWS),
    Nasty("two_members.csv.gz", gzip.compress(b"a,b\n1,") + gzip.compress(b"2\n"), [("1", "2")]),
    Nasty("line_breaks.csv.zst", zstd.compress(_QUOTED), _QUOTED_ROWS),
    Nasty("latin1.csv.zst", zstd.compress(b"a,b\n1,caf\xe9\n"), [("1", "café")], csv={"encoding": "latin-1"}),
    Nasty("digits.csv", b"a,b\n123456789012345678,007\n", [("123456789012345678", "007")]),
    Nasty("dates.csv", b"a,b\n2024-01-02,1.10\n", [("2024-01-02", "1.10")]),
    Nasty("nulls.csv", b'a,b\n,""\n"",\n,\n', [(None, None)] * 3),
    Nasty("null_values.csv", b"a,b\nn/a,-\n", [(None, None)], csv={"null_values": ("n/a", "-")}),
    Nasty("latin1.csv", b"a,b\n1,caf\xe9\n", [("1", "café")], csv={"encoding": "latin-1"}),
    Nasty("cp1252.csv", b"a,b\n1,\x80\n", [("1", "€")], csv={"encoding": "cp1252"}),
    Nasty("big5.csv", _BIG5, [("中文", "字")], csv={"encoding": "big5"}),
    Nasty("utf16.csv", "a,b\n中,é\n".encode("utf-16"), [("中", "é")]),
    Nasty("utf16le.csv", "a,b\n1,2\n".encode("utf-16-le"), [("1", "2")], csv={"encoding": "utf-16-le"}),
    Nasty("header_only.csv", b"a,b\n", []),
    Nasty("header_only_no_newline.csv", b"a,b", []),
    Nasty("blank_lines.csv", b"\na,b\n\n1,2\r\n\r\n3,4\n\n\n", [("1", "2"), ("3", "4")]),
    Nasty("one_column.csv", b'a\nx\n\n""\n', [("x",), (None,), (None,)], columns=("a",)),
    Nasty("quoted_header.csv", b'"a ""x""","b\nc"\n1,2\n', [("1", "2")], columns=('a "x"', "b\nc")),
    Nasty("empty_name.csv", b",b\n1,2\n", [("1", "2")], columns=("", "b")),
    Nasty("even_quotes.csv", b'a,b\n1,5" x 6"\n', [("1", '5" x 6"')]),
    Nasty("lone_quote.csv", b'a,b\n1,5" x\n2,3\n', [("1", '5" x'), ("2", "3")]),
    Nasty("lone_quote_header.csv", b'a",b"\n1,2\n', [("1", "2")], columns=('a"', 'b"')),
    Nasty("mixed_ends.csv", b"a,b\r1,2\r\n3,4\r", [("1", "2"), ("3", "4")]),
    Nasty("quote_off.csv", b'a,b\n1,5" x\n"2,3\n', [("1", '5" x'), ('"2', "3")], csv={"quote": None}),
    Nasty("spaces.csv", b"a,b\n 1 ,\t\n", [(" 1 ", "\t")]),
    Nasty("nul.csv", b"a,b\n1,x\0y\n", [("1", "x\0y")]),
    Nasty("semicolon.csv", b"a;b\n1,5;2\n", [("1,5", "2")], csv={"separator": ";"}),
    Nasty("caret.csv", b"a^b\n1^2\n", [("1", "2")], csv={"separator": "^"}),
    Nasty("tabs.tsv", b"a\tb\n1\t2,3\n", [("1", "2,3")]),
    Nasty("no_header.csv", b"1,2\n3,4\n", [("1", "2"), ("3", "4")], columns=("column_1", "column_2"),
          csv={"header": False}),
    Nasty("huge_cell.csv", b'a,b\n1,"' + b"x,\n" * 1_200_000 + b'"\n', [("1", "x,\n" * 1_200_000)]),
    Nasty("wide.csv", b",".join(b"c%d" % n for n in range(10_000)) + b"\n" + b"," * 9_999 + b"\n",
          [(None,) * 10_000], columns=tuple(f"c{n}" for n in range(10_000))),
    Nasty("late_field.jsonl", b'{"a":1}\n' * 150 + b'{"b":"x"}\n', [(1, None)] * 150 + [(None, "x")]),
    Nasty("bom.jsonl", b'\xef\xbb\xbf{"a":1,"b":"x"}\n', [(1, "x")]),
    Nasty("lone_cr.jsonl", b'{"a":1,"b":"x"}\r{"a":2,"b":"y"}\r', [(1, "x"), (2, "y")]),
    Nasty("blank_lines.jsonl", b'\n{"b":1,"a":2}\r\n\r\n', [(1, 2)], columns=("b", "a")),
    Nasty("digits.jsonl", b'{"a":123456789012345678,"b":0.30000000000000004}\n',
          [(123456789012345678, 0.30000000000000004)]),
    Nasty("beyond_64_bits.jsonl", b'{"a":12345678901234567890123,"b":1}\n', [(12345678901234567890123, 1)],
          framed=[("12345678901234567890123", 1)]),
    Nasty("mixed.jsonl", b'{"a":1,"b":null}\n{"a":"x"}\n', [(1, None), ("x", None)],
          framed=[("1", None), ("x", None)]),
    Nasty("nested.jsonl", b'{"a":[1,null],"b":{"k":"v"}}\n{"a":[],"b":null}\n', [([1, None], {"k": "v"}), ([], None)]),
    Nasty("no_value.jsonl", b'{"a":[],"b":{}}\n', [([], {})], framed=[([], "{}")]),
    Nasty("escapes.jsonl", b'{"a":"\\ud83d\\ude00\\u0000","b":"\\\\ud800"}\n', [("😀\0", "\\ud800")]),
    Nasty("kinds.jsonl", b'{"a":1,"b":[1,"x"]}\n{"a":true}\n', [(1, [1, "x"]), (True, None)],
          framed=[("1", ["1", "x"]), ("true", None)]),
    Nasty("long_and_fraction.jsonl", b'{"a":123456789012345678,"b":1}\n{"a":1.50,"b":2.5}\n',
          [(123456789012345678, 1), (1.5, 2.5)], framed=[("123456789012345678", 1.0), ("1.50", 2.5)]),
    Nasty("utf16.jsonl", '{"a":"中","b":1}\n'.encode("utf-16"), [("中", 1)]),
    Nasty("packed.ndjson.gz", gzip.compress(b'{"a":1,"b":2}\n'), [(1, 2)]),
)  # fmt: skip

_QUOTE = "set input.csv.quote (null: quotes are text)"
_RAGGED = "fix the line, or set input.csv.separator or input.csv.quote"
_UNCLOSED = "a quote opens a cell and is never closed; close it, or"

REFUSED = (
    Nasty("empty.csv", b"", line="empty.csv: the file is empty; its first line must name the columns"),
    Nasty("skipped.csv", b"a,b\n1,2\n", csv={"skip": 9}, line="skipped.csv: no line is left to name the columns: "
          "lower input.csv.skip, or change input.csv.comment"),
    Nasty("blank.csv", b"\r\n\n", line="blank.csv: the file is empty; its first line must name the columns"),
    Nasty("duplicate.csv", b"a,b,a\n1,2,3\n",
          line='duplicate.csv:1: column "a" occurs twice; rename one, or set input.csv.header: false'),
    Nasty("short.csv", b"a,b,c\n1,2,3\n1,2\n", line=f"short.csv:3: 2 cells where the header has 3; {_RAGGED}"),
    Nasty("long.csv", b'a,b\n"1\n",2\n1,2,3\n', line=f"long.csv:4: 3 cells where the header has 2; {_RAGGED}"),
    Nasty("spaces_only.csv", b"a,b\n  \n", line=f"spaces_only.csv:2: 1 cell where the header has 2; {_RAGGED}"),
    Nasty("long_first.csv", b"1,2\n1,2,3\n", csv={"header": False},
          line=f"long_first.csv:2: 3 cells where the first line has 2; {_RAGGED}"),
    Nasty("unbalanced.csv", b'a,b\n1,2\n1,"2\n3,4\n',
          line=f"unbalanced.csv:3: {_UNCLOSED} {_QUOTE}"),
    Nasty("unbalanced_header.csv", b'"a,b\n1,2\n',
          line=f"unbalanced_header.csv:1: {_UNCLOSED} {_QUOTE}"),
    Nasty("after_quote.csv", b'a,b\n1,"x\n2,"y"\n',
          line="after_quote.csv:2: text follows the closing quote of a cell; "
          f"double the quotes inside the cell, or {_QUOTE}"),
    Nasty("lone_return.csv", b"a,b\n1,x\ry\n",
          line="lone_return.csv:2: a carriage return inside an unquoted cell; "
          "quote the cell, or save the file with one line end"),
    Nasty("latin1.csv", b"a,b\n1,2\n3,caf\xe9 x\n",
          line="latin1.csv:3: byte 0xe9 is not utf-8; set input.csv.encoding (cp1252 or latin-1, …)"),
    Nasty("latin1_header.csv", b"caf\xe9,b\n",
          line="latin1_header.csv:1: byte 0xe9 is not utf-8; set input.csv.encoding (cp1252 or latin-1, …)"),
    Nasty("big5.csv", _BIG5,
          line="big5.csv:2: byte 0xa4 is not utf-8; set input.csv.encoding (big5, gb18030, shift_jis or cp1251, …)"),
    Nasty("cut_utf8.csv", b"a,b\n1,\xc3",
          line="cut_utf8.csv:2: byte 0xc3 is not utf-8; set input.csv.encoding (cp1252 or latin-1, …)"),
    Nasty("utf16.csv", "a,b\n1,2\n".encode("utf-16-le"),
          line="utf16.csv:1: NUL bytes in the first line; set input.csv.encoding (utf-16?) if this is a text file"),
    Nasty("not.csv.gz", b"a,b\n", line="not.csv.gz: can't be read or decompressed (Not a gzipped file (b'a,'))"),
    Nasty("empty.jsonl", b" \n",
          line="empty.jsonl: the file is empty, so it names no columns; input.path needs at least one line"),
    Nasty("no_fields.jsonl", b"{}\n", line="no_fields.jsonl: its objects have no fields"),
    Nasty("cut.jsonl", b'{"a":1}\n{"a":\n',
          line="cut.jsonl:2: not JSON (Expecting value); a line must hold one JSON object"),
    Nasty("array.jsonl", b'[{"a":1}]\n',
          line="array.jsonl is a JSON array, and a line must hold one JSON object: name it .json"),
    Nasty("nan.jsonl", b'{"a":NaN}\n',
          line="nan.jsonl:1: not JSON (NaN is not a JSON value); a line must hold one JSON object"),
    Nasty("surrogate.jsonl", b'{"a":1}\n{"a":"\\ud800"}\n',
          line="surrogate.jsonl:2: half of a surrogate pair (\\ud800 to \\udfff) is not text; "
          "a line must hold one JSON object"),
    Nasty("latin1.jsonl", b'{"a":"\xe9"}\n',
          line="latin1.jsonl:1: byte 0xe9 is not UTF-8, which JSONL must be; convert the file"),
)  # fmt: skip
