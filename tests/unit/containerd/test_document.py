"""A file as containerd reads it, and where its statements are."""

import pytest

from flox_node.containerd.config.document import parse
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError
from tests.unit.containerd.corpus import files

OLD, NEW = ContainerdVersion(1, 7, 24), ContainerdVersion(2, 1, 9)

MIXED = b"""# a comment
version = 2 # not 3
text = '''
[no.header]
x = 1
'''
[ a . "b.c" . 'd' ]  # spaced
  list = [ # with a comment ]
    "[x]",
  ]
e.f = { g = 1, "h" = [2] }
[[aot]]
k = 1
"""


def test_every_statement_is_found_with_its_path_and_its_lines() -> None:
    document = parse(MIXED, NEW)
    found = [(s.kind, s.path, s.line) for s in document.statements]
    assert found == [
        ("value", ("version",), 2),
        ("value", ("text",), 3),
        ("table", ("a", "b.c", "d"), 7),
        ("value", ("a", "b.c", "d", "list"), 8),
        ("value", ("a", "b.c", "d", "e", "f"), 11),
        ("array", ("aot",), 12),
        ("value", ("aot", "k"), 13),
    ]
    first = document.statements[1]
    assert document.text[first.start : first.end] == "text = '''\n[no.header]\nx = 1\n'''\n"
    assert document.line_of(("a", "b.c", "d", "e", "f", "g")) == 11
    assert document.line_of(("nowhere",)) is None


def test_every_file_of_the_corpus_is_covered_by_its_statements_and_trivia() -> None:
    seen = 0
    for path in files():
        try:
            document = parse(path.read_bytes(), NEW)
        except RefusedError:
            continue
        seen += 1
        rest, position = "", 0
        for statement in document.statements:
            rest += document.text[position : statement.start]
            position = statement.end
        rest += document.text[position:]
        assert all(not line.strip() or line.strip().startswith("#") for line in rest.splitlines()), path.name
        assert document.encode(document.text) == document.source
    assert seen > 90


@pytest.mark.parametrize(
    "source",
    [b"\xef\xbb\xbfversion = 2\n", b"# \xe4 in Latin-1\nversion = 2\n", b"# old\rMac\nversion = 2\n"],
    ids=["byte order mark", "Latin-1", "bare CR"],
)
def test_what_1x_reads_over_stops_2x_and_comes_back_to_the_byte(source: bytes) -> None:
    document = parse(source, OLD)
    assert document.version == 2
    assert document.encode(document.text) == source
    with pytest.raises(RefusedError, match="not TOML that containerd"):
        parse(source, NEW)


def test_1x_does_not_decode_escapes_in_a_header() -> None:
    source = b'["a\\u002eb"]\nx = "\\u0041"\n'
    assert parse(source, OLD).data == {"a\\u002eb": {"x": "A"}}
    assert parse(source, NEW).data == {"a.b": {"x": "A"}}
    assert parse(source, OLD).statements[1].path == ("a\\u002eb", "x")


@pytest.mark.parametrize(
    "source", [b'version = "2"\n', b"version = 2.0\n", b"version = true\n", b'imports = "x"\n', b"plugins = 1\n"]
)
def test_types_that_stop_the_daemon_are_refused(source: bytes) -> None:
    for containerd in (OLD, NEW):
        with pytest.raises(RefusedError, match="wrong type"):
            parse(source, containerd)


def test_the_line_end_is_that_of_the_end_of_the_file() -> None:
    assert parse(b"a = 1\r\nb = 2\n", NEW).newline == "\n"
    assert parse(b"a = 1\nb = 2\r\n", NEW).newline == "\r\n"
    assert parse(b"", NEW).newline == "\n"
