"""Bringing our objects into a cluster by server-side apply, and out of it again.

Everything is sent twice, the first time as a dry run: a conflict, a missing right or an object that an older API server
does not take is told before anything is written.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from flox_node.errors import RefusedError
from flox_node.kube.api import APPLY_PATCH, Api, ApiError, Object
from flox_node.kube.names import NAME
from flox_node.kube.resources import NAMESPACES, find, path_of

_STAND_IN = "default"  # the namespace of a dry run, as long as ours is not there
# What confines the service account is in force before a pod of it runs, and it runs when all it needs is there.
_FIRST = ("Namespace", "PriorityClass", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
_LAST = ("DaemonSet",)
_MANAGER = re.compile(r'conflict with "([^"]+)"')
_SERVERS_OWN = ("managedFields", "resourceVersion", "generation")


class Verb(StrEnum):
    """What became of an object."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    DELETED = "deleted"


@dataclass(frozen=True)
class Applied:
    """An object, and what became of it."""

    kind: str
    name: str
    change: Verb

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.change}"


def in_order(objects: Iterable[Object]) -> list[Object]:
    """The objects in the order in which they are applied; the reverse is the order in which they go."""

    def place(object: Object) -> int:
        kind = object["kind"]
        return _FIRST.index(kind) if kind in _FIRST else len(_FIRST) + (kind in _LAST)

    return sorted(objects, key=place)


def apply(api: Api, objects: Sequence[Object], *, dry_run: bool = False, force: bool = False) -> Iterator[Applied]:
    """Apply the objects, one after the other; `dry_run` only has the API server check them.

    Fields that another manager holds with another value are left alone, unless `force`d.

    Raises:
        RefusedError: another manager holds fields of ours; nothing was written.
        ApiError: the API server refused an object; if it is one of the first pass, nothing was written.
    """
    ordered = in_order(objects)
    absent = {space for space in map(_namespace, ordered) if space and find(api, NAMESPACES.path(space)) is None}
    checked = [_apply(api, each, dry_run=True, force=force, absent=absent) for each in ordered]
    if dry_run:
        yield from checked
        return
    for each in ordered:
        yield _apply(api, each, dry_run=False, force=force)


def delete(api: Api, object: Object) -> bool:
    """Ask for the end of an object and what it owns; whether that was new. It may take a while to go."""
    options = {"propagationPolicy": "Foreground" if object["kind"] == "DaemonSet" else "Background"}
    try:
        api.request("DELETE", path_of(object), options)
    except ApiError as error:
        if error.status in (404, 409):  # not there, or a namespace that is on its way out
            return False
        raise
    return True


def _apply(api: Api, object: Object, *, dry_run: bool, force: bool, absent: Container[str] = frozenset()) -> Applied:
    kind, name = object["kind"], object["metadata"]["name"]
    query = {"fieldManager": NAME, **({"dryRun": "All"} if dry_run else {}), **({"force": "true"} if force else {})}
    if _namespace(object) in absent:
        metadata = {**object["metadata"], "namespace": _STAND_IN}
        _send(api, {**object, "metadata": metadata}, {**query, "force": "true"})
        return Applied(kind, name, Verb.CREATED)
    before = find(api, path_of(object))
    try:
        after = _send(api, object, query)
    except ApiError as error:
        others = managers(error)
        if error.reason != "Conflict" or not others:
            raise
        if others != {NAME}:
            raise _held(object, error, others) from error
        # Ours, but not by apply: what `uninstall` changed in the live DaemonSet.
        after = _send(api, object, {**query, "force": "true"})
    if before is None:
        return Applied(kind, name, Verb.CREATED)
    return Applied(kind, name, Verb.UNCHANGED if _core(before) == _core(after) else Verb.CHANGED)


def _send(api: Api, object: Object, query: dict[str, str]) -> Object:
    return api.request("PATCH", path_of(object), object, content_type=APPLY_PATCH, query=query)


def _namespace(object: Object) -> str:
    return str(object["metadata"].get("namespace", ""))


def managers(conflict: ApiError) -> set[str]:
    """Who else holds fields of an object that could not be applied."""
    causes = conflict.details.get("causes") or []
    return {match[1] for cause in causes if (match := _MANAGER.search(str(cause.get("message"))))}


def _held(object: Object, error: ApiError, others: set[str]) -> RefusedError:
    fields = sorted({str(cause.get("field")) for cause in error.details.get("causes") or []})
    name = f"{object['kind']} {object['metadata']['name']}"
    return RefusedError(
        f"{name}: {', '.join(fields)} is held by {' and '.join(sorted(others))}, with another value.",
        remedy="Change it with the tool that holds it, or take it over with --force-conflicts.",
    )


def _core(object: Object) -> Any:
    metadata = {key: value for key, value in object.get("metadata", {}).items() if key not in _SERVERS_OWN}
    return {**object, "metadata": metadata, "status": None}
