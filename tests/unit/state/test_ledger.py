"""The ledger: what a kill, a power cut or another version leave is read as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from flox_node.errors import CorruptError, RefusedError
from flox_node.host import HostFiles
from flox_node.state.ledger import JOURNAL, RECEIPT, Ledger, Receipt


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    (tmp_path / "var/lib/flox-node").mkdir(parents=True)
    return HostFiles(tmp_path)


def _receipt(ledger: Ledger) -> Receipt:
    return Receipt("0.1.0", "abc", "m", "2026-01-01T00:00:00+00:00", tuple(ledger.records.values()))


def test_what_a_killed_run_began_is_known_with_what_its_revert_needs(files: HostFiles) -> None:
    Ledger.load(files).begin("a", {"kind": "x"}, {"created": True})
    ledger = Ledger.load(files)
    assert ledger.interrupted
    assert ledger.records["a"].before == {"created": True}
    assert not ledger.records["a"].done


def test_a_second_begin_keeps_the_first_capture_when_it_has_none_itself(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {"created": True})
    ledger.begin("a", {"kind": "x"}, None)
    assert Ledger.load(files).records["a"].before == {"created": True}


def test_a_newer_capture_replaces_an_older_one(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {"bytes": "old"})
    ledger.done("a")
    ledger.begin("a", {"kind": "x"}, {"bytes": "newer"})
    assert Ledger.load(files).records["a"].before == {"bytes": "newer"}


def test_a_concluded_run_leaves_a_receipt_and_no_journal(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {"created": True})
    ledger.done("a")
    ledger.conclude(_receipt(ledger))
    assert not files.exists(JOURNAL)
    again = Ledger.load(files)
    assert not again.interrupted
    assert again.records == ledger.records


def test_a_kill_between_receipt_and_journal_changes_nothing(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {"created": True})
    ledger.done("a")
    files.write_atomic(RECEIPT, _receipt(ledger).to_bytes())
    assert Ledger.load(files).records == ledger.records


def test_reverted_records_are_gone_and_half_reverted_ones_are_not_done(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    for key in ("a", "b"):
        ledger.begin(key, {"kind": "x"}, {})
        ledger.done(key)
    ledger.reverting("b")
    ledger.reverted("b")
    ledger.reverting("a")
    records = Ledger.load(files).records
    assert list(records) == ["a"]
    assert not records["a"].done


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_torn_by_a_power_cut_never_happened_and_the_next_run_goes_on(files: HostFiles, cut: int) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {"created": True})
    ledger.begin("b", {"kind": "x"}, {"created": True})
    files.write_atomic(JOURNAL, files.read(JOURNAL)[:-cut])
    torn = Ledger.load(files)
    assert set(torn.records) == {"a"}
    torn.begin("c", {"kind": "x"}, {})
    assert set(Ledger.load(files).records) == {"a", "c"}


def test_a_damaged_line_in_the_middle_is_an_error_that_names_the_file(files: HostFiles) -> None:
    ledger = Ledger.load(files)
    ledger.begin("a", {"kind": "x"}, {})
    ledger.begin("b", {"kind": "x"}, {})
    files.write_atomic(JOURNAL, b"garbage\n" + files.read(JOURNAL))
    with pytest.raises(CorruptError, match=r"journal\.jsonl is damaged"):
        Ledger.load(files)


def test_the_receipt_of_a_newer_version_is_refused(files: HostFiles) -> None:
    files.write_atomic(RECEIPT, b'{"schema_version": 99, "version": "9.0.0"}')
    with pytest.raises(RefusedError, match=r"newer flox-node \(9\.0\.0\)"):
        Ledger.load(files)


def test_a_receipt_that_is_none_is_corrupt(files: HostFiles) -> None:
    files.write_atomic(RECEIPT, b'{"schema_version": 1}')
    with pytest.raises(CorruptError):
        Ledger.load(files)
