"""The ledger of a node: what flox-node did, and how it was before.

It is folded from two files below `/var/lib/flox-node`:

* `receipt.json`, written once an install ended: every action done, each with what its revert needs to know;
* `journal.jsonl`, the fsynced log of a run that has not ended: an entry before each action (with what its revert needs,
  so that a kill in the middle loses nothing), one after it, and the notes of an action's own steps.

A journal that lies there at the start of a run is that of a killed one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from flox_node.errors import CorruptError, RefusedError

STATE_DIR = "/var/lib/flox-node"
RECEIPT = f"{STATE_DIR}/receipt.json"
JOURNAL = f"{STATE_DIR}/journal.jsonl"
SCHEMA_VERSION = 1

Json = Mapping[str, Any]


class Files(Protocol):
    """The part of the host's files that the ledger needs."""

    def read_optional(self, path: str) -> bytes | None:
        """The file's bytes, or None."""
        ...

    def write_atomic(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Replace the file as a whole."""
        ...

    def append_durably(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """Append and fsync."""
        ...

    def remove(self, path: str) -> bool:
        """Remove the file if it is there."""
        ...


@dataclass(frozen=True)
class Record:
    """One action that was begun: the action as JSON, what its revert needs, and whether it ended."""

    key: str
    action: Json
    before: Json
    done: bool


@dataclass(frozen=True)
class Receipt:
    """What a finished install left: versions, identities and the records in the order in which they were begun."""

    version: str
    payload_id: str
    machine_id: str
    installed_at: str
    records: tuple[Record, ...]

    def to_bytes(self) -> bytes:
        """The receipt as `receipt.json` holds it."""
        body = {
            "schema_version": SCHEMA_VERSION,
            "version": self.version,
            "payload_id": self.payload_id,
            "machine_id": self.machine_id,
            "installed_at": self.installed_at,
            "records": [
                {"key": record.key, "action": record.action, "before": record.before} for record in self.records
            ],
        }
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Receipt:
        """Parse `receipt.json`.

        Raises:
            RefusedError: a newer flox-node wrote it.
            CorruptError: it is not a receipt.
        """
        try:
            body = json.loads(data)
            if body["schema_version"] > SCHEMA_VERSION:
                raise RefusedError(
                    f"{RECEIPT} was written by a newer flox-node ({body.get('version')}).",
                    remedy="Use that version or a newer one on this node.",
                )
            records = tuple(
                Record(key=record["key"], action=record["action"], before=record["before"], done=True)
                for record in body["records"]
            )
            return cls(body["version"], body["payload_id"], body["machine_id"], body["installed_at"], records)
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(RECEIPT, error) from error


@dataclass
class Ledger:
    """The records of a node, and the journal that a run appends to."""

    files: Files
    receipt: Receipt | None
    records: dict[str, Record] = field(default_factory=dict)
    interrupted: bool = False
    kept: dict[str, str] = field(default_factory=dict)  # key: why an uninstall had to leave it
    torn_journal: bytes | None = None  # its whole lines, where a power cut tore the last one

    @classmethod
    def load(cls, files: Files) -> Ledger:
        """Fold the receipt and what a killed run left in the journal.

        Raises:
            RefusedError: a newer flox-node wrote the receipt.
            CorruptError: one of the files is damaged.
        """
        data = files.read_optional(RECEIPT)
        receipt = Receipt.from_bytes(data) if data is not None else None
        ledger = cls(files, receipt, {record.key: record for record in (receipt.records if receipt else ())})
        journal = files.read_optional(JOURNAL)
        if journal is None:
            return ledger
        ledger.interrupted = True
        whole, _, torn = journal.rpartition(b"\n")
        if torn:  # a power cut in the middle of the append: what that line announces never happened
            ledger.torn_journal = whole + b"\n" if whole else b""
        for line in filter(None, whole.split(b"\n")):
            try:
                ledger._fold(json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                raise _corrupt(JOURNAL, error) from error
        return ledger

    def begin(self, key: str, action: Json, before: Json | None) -> None:
        """Note that `action` is about to be executed. `before` None: what is known from an earlier begin stays."""
        self._append({"event": "begin", "key": key, "action": action, "before": before})

    def step(self, key: str, name: str) -> None:
        """Note that a step of the action now is done."""
        self._append({"event": "step", "key": key, "step": name})

    def done(self, key: str) -> None:
        """Note that the action ended."""
        self._append({"event": "done", "key": key})

    def reverting(self, key: str) -> None:
        """Note that the action is about to be reverted."""
        self._append({"event": "reverting", "key": key})

    def reverted(self, key: str) -> None:
        """Note that the action is undone."""
        self._append({"event": "reverted", "key": key})

    def keep(self, key: str, reason: str) -> None:
        """Note that the action could not be undone yet, because something in use needs it."""
        self._append({"event": "keep", "key": key, "reason": reason})

    def conclude(self, receipt: Receipt | None) -> None:
        """End a run: write the receipt (or remove it, after the last revert), then drop the journal."""
        if receipt is None:
            self.files.remove(RECEIPT)
        else:
            self.files.write_atomic(RECEIPT, receipt.to_bytes(), 0o600)
        self.files.remove(JOURNAL)
        self.receipt = receipt
        self.interrupted = False

    @property
    def changed(self) -> bool:
        """Whether something was journalled that no receipt concludes yet."""
        return self.files.read_optional(JOURNAL) is not None

    def _append(self, entry: dict[str, Any]) -> None:
        if self.torn_journal is not None:
            self.files.write_atomic(JOURNAL, self.torn_journal, 0o600)
            self.torn_journal = None
        self.files.append_durably(JOURNAL, json.dumps(entry, sort_keys=True).encode() + b"\n")
        self._fold(entry)

    def _fold(self, entry: Json) -> None:
        key = entry["key"]
        known = self.records.get(key)
        match entry["event"]:
            case "begin":
                self.kept.pop(key, None)
                before = entry["before"]
                if before is None:
                    before = known.before if known else {}
                self.records[key] = Record(key, entry["action"], before, done=False)
            case "done" if known:
                self.records[key] = replace(known, done=True)
            case "reverting" if known:
                self.kept.pop(key, None)
                self.records[key] = replace(known, done=False)
            case "keep":
                self.kept[key] = entry["reason"]
            case "reverted":
                self.records.pop(key, None)


def _corrupt(path: str, error: Exception) -> CorruptError:
    return CorruptError(
        f"{path} is damaged: {type(error).__name__}: {error}.",
        remedy=f"Move {path} aside (and keep it for a bug report), then run `flox-node install` again: it takes over "
        "what is already on the node.",
    )
