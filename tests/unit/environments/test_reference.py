from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flox_node.environments.errors import BadRequestError
from flox_node.environments.reference import Reference


def test_an_environment_without_a_generation_is_the_live_one() -> None:
    assert Reference.parse("demo/hello") == Reference("demo", "hello", None)


def test_a_generation_follows_a_colon() -> None:
    reference = Reference.parse("demo/hello:12")
    assert reference == Reference("demo", "hello", 12)
    assert str(reference) == "demo/hello:12"


@pytest.mark.parametrize(
    "text",
    [
        *("", "hello", "demo/", "/hello", "demo/hello/x", "-f/hello", "demo/-f", "../hello", "demo/..", "demo/a..b"),
        *("demo/a.lock", "demo/a.", "demo/hel lo", "demo/hello\n", "demo/h\0llo", "démo/hello", "demo/" + "a" * 129),
        *("demo/hello:", "demo/hello:0", "demo/hello:01", "demo/hello:-1", "demo/hello:1:2", "demo/hello:x"),
        *("demo/hello:1\n", "demo/hello:\N{FULLWIDTH DIGIT NINE}"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadRequestError):
        Reference.parse(text)


def test_a_generation_after_an_at_sign_is_told_the_right_form() -> None:
    with pytest.raises(BadRequestError, match="colon") as refused:
        Reference.parse("demo/hello@2")
    assert "owner/name:3" in refused.value.remedy


@given(st.text(alphabet="ab./-_:1@\n\0 é", max_size=12) | st.text(max_size=12))
def test_what_is_accepted_is_harmless_as_argument_path_and_branch(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadRequestError:
        return
    assert str(reference) == text
    for part in (reference.owner, reference.name):
        assert re.fullmatch(r"[A-Za-z0-9][\x21-\x7e]*", part)
        assert ".." not in part
        assert not set(part) & set("/:~^?*[\\@{")
