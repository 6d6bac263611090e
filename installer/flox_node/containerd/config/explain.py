"""`flox-node containerd explain`: the effective configuration in the words of the person who has to understand it."""

from __future__ import annotations

from typing import Any

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Effective, Reader
from flox_node.containerd.config.placement import place
from flox_node.errors import RefusedError

_STATES = {
    "ok": "the CRI plugin loads",
    "disabled": "the CRI plugin is disabled",
    "dead": "containerd starts, but the CRI plugin does not load",
    "refused": "containerd does not start",
}


def report(effective: Effective, reader: Reader, handler: Handler) -> dict[str, Any]:
    """Everything there is to say, as plain values: what `--json` prints and the tables show.

    Keys: containerd, state, summary, files, handlers, settings, findings, placement.
    """
    cri = effective.cri
    runtimes = cri.runtimes if cri else {}
    return {
        "schema_version": 1,
        "containerd": str(effective.containerd),
        "state": effective.state,
        "summary": effective.refused or _STATES[effective.state],
        "plugin": cri.plugin if cri else None,
        "default_runtime": cri.default_runtime if cri else None,
        "files": [
            {
                "path": file.path,
                "exists": file.exists,
                "imported_by": file.imported_by,
                "version": file.document.version or None,
            }
            for file in effective.files
        ],
        "handlers": [
            {
                "name": name,
                "default": cri is not None and name == cri.default_runtime,
                "runtime_type": table.get("runtime_type"),
                "base_runtime_spec": table.get("base_runtime_spec") or None,
                "options": table.get("options", {}),
                "set_by": _set_by(effective, name),
            }
            for name, table in runtimes.items()
        ],
        "settings": [
            {"path": list(setting.path), "value": setting.value, "file": setting.file, "line": setting.line}
            for setting in effective.settings
        ],
        "findings": [
            {
                "severity": finding.severity,
                "code": finding.code,
                "text": finding.text,
                "file": finding.file,
                "line": finding.line,
            }
            for finding in effective.findings
        ],
        "placement": _placement(effective, reader, handler),
    }


def _set_by(effective: Effective, handler: str) -> list[str]:
    """The files that say something about a handler, in load order; [] for the built-in one."""
    files = {setting.file for setting in effective.settings if _about(setting.path, handler)}
    return [file.path for file in effective.files if file.path in files]


def _about(path: tuple[str, ...], handler: str) -> bool:
    return path[0] == "plugins" and path[2:5] == ("containerd", "runtimes", handler)


def _placement(effective: Effective, reader: Reader, handler: Handler) -> dict[str, Any]:
    try:
        edits = place(effective, reader, handler)
    except RefusedError as error:
        return {"refused": error.cause, "remedy": error.remedy, "edits": []}
    return {
        "refused": None,
        "remedy": None,
        "edits": [
            {
                "path": edit.path,
                "kind": edit.kind,
                "plugin": edit.patch.plugin_id,
                "there_already": not edit.changed,
                "adds_runc": edit.patch.added_runc,
                "inherits_from": edit.patch.inherited_from,
                "inherited": edit.patch.inherited,
                "inner_runtime": edit.patch.inner_runtime,
            }
            for edit in edits
        ],
    }
