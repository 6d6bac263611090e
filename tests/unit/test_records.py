"""The records that Go and Python exchange: the Python side's view of the examples that shim/ reads too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "installer/flox_node/state/schemas"
KINDS = ("container-record", "grant", "notice", "pod-record", "realise-answer", "realise-request")
EXAMPLES = [path for kind in KINDS for path in sorted((ROOT / "tests/unit/records").glob(f"{kind}.*.json"))]


def load(path: Path) -> Any:
    return json.loads(path.read_text())


def schema(kind: str) -> dict[str, Any]:
    loaded: dict[str, Any] = load(SCHEMAS / f"{kind}.schema.json")
    return loaded


# A record may hold what another one's schema defines.
REGISTRY: Registry[Any] = Registry().with_resources(
    (schema(kind)["$id"], Resource.from_contents(schema(kind))) for kind in KINDS
)


def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(schema(kind), registry=REGISTRY)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_as_valid_as_its_name_says(path: Path) -> None:
    kind, verdict = path.name.split(".")[:2]
    assert verdict in ("valid", "invalid")
    assert validator(kind).is_valid(load(path)) == (verdict == "valid")


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_one_of_the_draft_that_it_names(kind: str) -> None:
    Draft202012Validator.check_schema(schema(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verdict", ["valid", "invalid"])
def test_every_schema_has_examples_of_both_kinds(kind: str, verdict: str) -> None:
    assert any(path.name.startswith(f"{kind}.{verdict}.") for path in EXAMPLES)


@pytest.mark.parametrize("kind", KINDS)
def test_no_required_field_may_be_missing_from_a_valid_record(kind: str) -> None:
    example = load(next(path for path in EXAMPLES if path.name.startswith(f"{kind}.valid.")))
    for field in schema(kind)["required"]:
        assert not validator(kind).is_valid({name: value for name, value in example.items() if name != field}), field


def test_the_shim_looks_for_tokens_where_every_platforms_kubelet_keeps_them() -> None:
    from flox_node.platforms import facts

    told = (ROOT / "shim/internal/node/paths.go").read_text().partition("kubeletRoots = []string{")[2].partition("}")[0]
    assert set(re.findall(r'"([^"]+)"', told)) == set(facts(lambda platform: [platform.kubelet_root]))
