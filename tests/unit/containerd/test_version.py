"""Versions of containerd as they are written in the wild."""

import pytest

from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import UsageError


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", (1, 6, 20)),
        ("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+deb13u1", (1, 7, 24)),
        ("containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7193e4e490e9fbdc236c0e811ccaba3376", (2, 1, 4)),
        ("containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da", (1, 7, 27)),
        ("containerd://2.2.4-k3s1", (2, 2, 4)),
        ("v2.4.0-beta.1", (2, 4, 0)),
        ("1.7", (1, 7, 0)),
        ("2.1.9+unknown", (2, 1, 9)),
    ],
)
def test_the_version_is_found_in_whatever_names_it(text: str, numbers: tuple[int, int, int]) -> None:
    found = ContainerdVersion.parse(text)
    assert (found.major, found.minor, found.patch) == numbers


@pytest.mark.parametrize("text", ["", "containerd", "v2", "github.com/containerd/containerd/v2"])
def test_a_text_without_a_version_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="no containerd version"):
        ContainerdVersion.parse(text)


def test_versions_compare_by_their_numbers_and_are_shown_as_written() -> None:
    old, new = ContainerdVersion.parse("1.7.9~ds1"), ContainerdVersion.parse("v1.7.10")
    assert old < new
    assert (str(old), str(new)) == ("1.7.9~ds1", "1.7.10")


@pytest.mark.parametrize(
    ("text", "newest"), [("1.6.20", 2), ("1.7.24", 2), ("2.0.2", 3), ("2.2.7", 3), ("2.3.0", 4), ("2.4.0", 4)]
)
def test_each_release_reads_schemas_up_to_its_own(text: str, newest: int) -> None:
    assert ContainerdVersion.parse(text).newest_schema == newest
