"""The model and the editor against what real daemons did with every file of the corpus."""

import functools
from collections.abc import Callable

import pytest

from flox_node.containerd.config.editor import Handler, Patch, register, remove
from flox_node.containerd.config.effective import MapReader, load
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError
from tests.unit.command import call
from tests.unit.containerd.corpus import Case, cases


def failures(check: Callable[[Case], str | None], wanted: Callable[[Case], bool] = lambda _: True) -> list[str]:
    """The complaints of `check` over all cases; at least one case must have been looked at."""
    looked_at = [case for case in cases() if wanted(case)]
    assert looked_at
    return [f"{case}: {complaint}" for case in looked_at if (complaint := check(case))]


def version(case: Case) -> ContainerdVersion:
    return ContainerdVersion.parse(case.containerd)


@functools.cache
def registered(source: bytes, containerd: ContainerdVersion, adopt: bool) -> Patch:
    return register(source, Handler(), containerd, adopt=adopt)


def test_patch_agrees_with_the_oracle_on_every_file_and_containerd() -> None:
    def check(case: Case) -> str | None:
        adopt = ["--adopt"] if case.flox_is_there else []
        done = call("containerd", "patch", case.path, "--containerd-version", case.containerd, *adopt)
        refused = done.exit_code == 3
        if done.exit_code and not refused:
            return done.stderr
        if refused == case.can_be_registered:
            return f"{done.stderr or 'patched'}, the oracle says {case.verdict}"
        if refused or case.flox_is_there:
            return None
        patch = registered(case.source, version(case), adopt=False)
        good = case.ids_with_runc if patch.added_runc else case.ids
        return None if patch.plugin_id in good else f"{patch.plugin_id} is not among {good}"

    assert failures(check) == []


def test_the_model_agrees_with_the_oracle_about_the_files_as_they_are() -> None:
    def check(case: Case) -> str | None:
        effective = load("/c.toml", MapReader({"/c.toml": case.source}), version(case))
        if case.baseline["rc"]:
            return None if effective.state == "refused" else f"{effective.state}, the daemon refuses it"
        state = case.baseline["cri"]
        if effective.cri is None:
            dangling = "does not exist" in (effective.refused or "")  # `config dump` of 2.x hides it from the oracle
            return None if dangling and version(case).major >= 2 else effective.refused
        wanted = "dead" if state.startswith("DEAD") else state
        if effective.state != wanted:
            return f"{effective.state}, the oracle says {state}"
        if state == "disabled":
            return None
        found = {
            name: (table.get("runtime_type"), bool(table.get("options", {}).get("SystemdCgroup")))
            for name, table in effective.cri.runtimes.items()
            # Set by the daemon's validation, which the dump behind the oracle does not run.
            if not (name == "default" and effective.cri.default_runtime == "default")
        }
        truth = {
            name: (runtime["type"], bool(runtime["SystemdCgroup"]))
            for name, runtime in case.baseline["runtimes"].items()
        }
        return None if found == truth else f"{found}, the oracle says {truth}"

    assert failures(check) == []


def test_remove_gives_back_the_original_bytes_of_every_file() -> None:
    def check(case: Case) -> str | None:
        patched = register(case.source, Handler(), version(case), adopt=case.flox_is_there, template=True)
        restored = remove(patched.result, Handler(), version(case))
        return None if restored.result == case.source else "differs"

    assert failures(check, lambda case: case.can_be_registered) == []


def test_a_second_patch_changes_nothing_in_any_file() -> None:
    def check(case: Case) -> str | None:
        first = registered(case.source, version(case), adopt=case.flox_is_there)
        second = register(first.result, Handler(), version(case))
        return None if not second.changed and second.result == first.result else "changed"

    assert failures(check, lambda case: case.can_be_registered) == []


def test_a_patch_with_other_values_is_replaced_where_it_stands() -> None:
    def check(case: Case) -> str | None:
        old = register(case.source, Handler(binary_name="/old/flox-runtime"), version(case), adopt=case.flox_is_there)
        followed = old.result + b"# something that came later\n"
        new = register(followed, Handler(), version(case))
        if b"/old/flox-runtime" in new.result or not new.result.endswith(b"later\n") or not new.changed:
            return "the old table is still there"
        without = remove(new.result, Handler(), version(case)).result
        return (
            None
            if without.replace(b"# something that came later\n", b"").rstrip(b"\r\n") == case.source.rstrip(b"\r\n")
            else "the rest differs"
        )

    assert failures(check, lambda case: case.can_be_registered) == []


@pytest.mark.parametrize("containerd", ["1.7.24", "2.2.7"])
def test_the_microk8s_template_is_patched_only_when_it_is_called_one(containerd: str) -> None:
    case = next(case for case in cases() if case.path.name.startswith("042-microk8s"))
    with pytest.raises(RefusedError, match="even without us"):
        register(case.source, Handler(), ContainerdVersion.parse(containerd))
    patch = register(case.source, Handler(), ContainerdVersion.parse(containerd), template=True)
    assert patch.inherited_from == "runc"
    assert patch.result.startswith(case.source)
    rendered = patch.result.replace(b"${RUNTIME}", b"runc").replace(b"${RUNTIME_TYPE}", b"io.containerd.runc.v2")
    assert load("/c", MapReader({"/c": rendered}), ContainerdVersion.parse(containerd)).state == "ok"
    assert remove(patch.result, Handler(), ContainerdVersion.parse(containerd)).result == case.source
