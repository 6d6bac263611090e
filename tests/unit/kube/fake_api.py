"""An API server in memory: get, list, delete, and patches with field managers, as far as our code can tell them apart.

Lists are owned as a whole, whereas the real one knows the keys of some; the real one is asked in the cluster tier.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from flox_node.kube.api import APPLY_PATCH, JSON_PATCH, STRATEGIC_PATCH, ApiError, Object

_PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<ns>[^/]+)(?=/.))?/(?P<plural>[a-z]+)(?:/(?P<name>[^/]+))?"
)
Field = tuple[str, ...]


class FakeApi:
    """An `Api`. `objects` by path, `requests` as (method, path, query), `logs` by path; `down` refuses to answer."""

    def __init__(self, version: str = "1.34", *, page: int = 500) -> None:
        major, minor = version.split(".")
        self.version = {"major": major, "minor": minor, "gitVersion": f"v{version}.0"}
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.logs: dict[str, str] = {}
        self.down = 0  # so many requests are not answered
        self._page = page
        self._owners: dict[str, dict[Field, tuple[str, str]]] = {}
        self._count = 0

    def put(self, path: str, found: Object, *, manager: str = "kubectl") -> None:
        """What somebody else writes, as an update."""
        before = self.objects.get(path, {})
        self._store(path, copy.deepcopy(found), before)
        self._own_changes(path, before, manager)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Object:
        asked = dict(query or {})
        self.requests.append((method, path, asked))
        if self.down:
            self.down -= 1
            raise ApiError("The API server does not answer: connection refused")
        if path == "/version":
            return self.version
        match = _PATH.fullmatch(path)
        assert match, path
        if method == "GET":
            return copy.deepcopy(self._get(path) if match["name"] else self._list(path, match, asked))
        if method == "DELETE":
            return self._delete(path)
        assert method == "PATCH"
        assert match["name"]
        change: Any = json.loads(json.dumps(body))
        if content_type == APPLY_PATCH:
            return self._apply(path, match["ns"], change, asked)
        before = self._get(path)
        after = _json_patched(before, change) if content_type == JSON_PATCH else _merged(before, change)
        assert content_type in (JSON_PATCH, STRATEGIC_PATCH)
        self._store(path, after, before)
        self._own_changes(path, before, asked["fieldManager"])
        return copy.deepcopy(after)

    def text(self, path: str, *, query: Mapping[str, str] | None = None, timeout: float = 30.0) -> str:
        key = f"{path}?{(query or {}).get('container')}{'&previous' if (query or {}).get('previous') else ''}"
        if key not in self.logs:
            raise ApiError("previous terminated container not found", status=400, reason="BadRequest")
        return self.logs[key]

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        raise NotImplementedError

    def _get(self, path: str) -> Object:
        if path not in self.objects:
            raise ApiError(f"{path} not found", status=404, reason="NotFound")
        return self.objects[path]

    def _list(self, path: str, match: re.Match[str], asked: Mapping[str, str]) -> Object:
        found = []
        for each, item in sorted(self.objects.items()):
            other = _PATH.fullmatch(each)
            assert other
            if other["plural"] == match["plural"] and match["ns"] in (None, other["ns"]):
                found.append(item)
        found = [item for item in found if _selected(item, asked)]
        start = int(asked.get("continue", "0"))
        page = min(self._page, int(asked["limit"]))
        more = {"continue": str(start + page)} if start + page < len(found) else {}
        return {"metadata": more, "items": found[start : start + page]}

    def _delete(self, path: str) -> Object:
        gone = self._get(path)
        owned = [
            each
            for each, item in self.objects.items()
            if any(owner["uid"] == gone["metadata"]["uid"] for owner in item["metadata"].get("ownerReferences", []))
        ]
        for each in [path, *owned, *[other for other in self.objects if other.startswith(f"{path}/")]]:
            self.objects.pop(each, None)
            self._owners.pop(each, None)
        if "/namespaces/" in path and path.count("/") == 4:
            within = f"/namespaces/{path.rpartition('/')[2]}/"
            self.objects = {each: item for each, item in self.objects.items() if within not in each}
        return {"status": "Success"}

    def _apply(self, path: str, namespace: str | None, body: Object, asked: Mapping[str, str]) -> Object:
        if namespace and f"/api/v1/namespaces/{namespace}" not in self.objects and namespace != "default":
            raise ApiError(f'namespaces "{namespace}" not found', status=404, reason="NotFound")
        before = self.objects.get(path, {})
        me = (asked["fieldManager"], "Apply")
        wanted, live = dict(_leaves(body)), dict(_leaves(before))
        owners = dict(self._owners.get(path, {}))
        held = {
            field: owners[field]
            for field, value in wanted.items()
            if field in live and live[field] != value and owners.get(field, me) != me
        }
        if held and asked.get("force") != "true":
            causes = [
                {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{manager}" using {body["apiVersion"]}',
                    "field": "." + ".".join(field),
                }
                for field, (manager, _) in held.items()
            ]
            text = f"Apply failed with {len(causes)} conflicts"
            raise ApiError(text, status=409, reason="Conflict", details={"causes": causes})
        after = copy.deepcopy(before)
        for field in [field for field, owner in owners.items() if owner == me and field not in wanted]:
            _remove(after, field)
            del owners[field]
        for field, value in wanted.items():
            _set(after, field, value)
            if live.get(field) != value or field not in owners:
                owners[field] = me
        if asked.get("dryRun") == "All":
            return after
        self._store(path, after, before)
        self._owners[path] = owners
        return copy.deepcopy(after)

    def _store(self, path: str, after: Object, before: Object) -> None:
        self._count += 1
        metadata = after.setdefault("metadata", {})
        metadata.setdefault("uid", f"uid-{self._count}")
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        if before and before.get("spec") != after.get("spec"):
            metadata["generation"] = before["metadata"].get("generation", 1) + 1
        metadata.setdefault("generation", 1)
        metadata["resourceVersion"] = str(self._count)
        self.objects[path] = after

    def _own_changes(self, path: str, before: Object, manager: str) -> None:
        live, owners = dict(_leaves(before)), self._owners.setdefault(path, {})
        for field, value in _leaves(self.objects[path]):
            if live.get(field) != value:
                owners[field] = (manager, "Update")


def _leaves(value: Any, path: Field = ()) -> Iterator[tuple[Field, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            if path != ("metadata",) or key not in ("uid", "creationTimestamp", "generation", "resourceVersion"):
                yield from _leaves(item, (*path, key))
    elif path:
        yield path, value


def _set(target: Any, path: Field, value: Any) -> None:
    for key in path[:-1]:
        if not isinstance(target.get(key), dict):
            target[key] = {}
        target = target[key]
    target[path[-1]] = copy.deepcopy(value)


def _remove(target: Any, path: Field) -> None:
    for key in path[:-1]:
        target = target.get(key, {})
    target.pop(path[-1], None)


def _merged(before: Any, change: Any) -> Any:
    if not isinstance(change, dict):
        return change
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _json_patched(before: Object, operations: Any) -> Object:
    result = copy.deepcopy(before)
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        target: Any = result
        for key in parents:
            target = target[int(key)] if isinstance(target, list) else target[key]
        match operation["op"]:
            case "test":
                if target.get(last) != operation["value"]:
                    raise ApiError("the server rejected our request", status=422, reason="Invalid")
            case "remove":
                del target[last]
            case _:
                target[last] = operation["value"]
    return result


def _selected(item: Object, asked: Mapping[str, str]) -> bool:
    label = asked.get("labelSelector")
    if label and label not in (item["metadata"].get("labels") or {}):
        return False
    for term in filter(None, asked.get("fieldSelector", "").split(",")):
        path, operator, value = re.fullmatch(r"([\w.]+)(!?=)(.*)", term).groups()  # type: ignore[union-attr]
        found: Any = item.get("source", {}).get("component") if path == "source" else item
        for key in path.split(".") if path != "source" else ():
            found = (found or {}).get(key)
        if (found == value) is (operator == "!="):
            return False
    return True
