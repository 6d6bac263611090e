"""containerd, its configuration and the handler in it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Finding
from flox_node.containerd.live import pending, sharing
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Running
from flox_node.containerd.live.pending import Pending
from flox_node.containerd.live.sharing import Sharing
from flox_node.errors import FloxNodeError
from flox_node.names import HANDLER, SHIM
from flox_node.plan import heal
from flox_node.plan.doctor.check import Check, State, Verdict, ok, problem, skipped, told, warning
from flox_node.plan.doctor.node import Node
from flox_node.platforms import facts
from flox_node.state import policy

_DRIVER = re.compile(r'^\s*"?cgroupDriver"?\s*:\s*"?(\w+)"?', re.MULTILINE)
_VENDOR_SHIMS = ("/usr/local/bin", "/usr/bin", "/opt/flox/bin")


def _containerd(node: Node) -> tuple[str, str]:
    try:
        found = node.daemon
    except FloxNodeError as error:
        return "", error.cause
    return f"{found.exe} (pid {found.pid}, {found.unit})", ""


def _decide_containerd(found: tuple[str, str]) -> Verdict:
    running, why = found
    return ok(running) if running else problem(why)


def _try_bus(node: Node) -> str | FloxNodeError:
    unit = node.daemon.unit  # without a containerd there is no unit to ask for: skipped
    try:
        return f"{unit} is {node.host.systemd.status(unit).active}"
    except FloxNodeError as error:
        return error


def _decide_bus(found: str | FloxNodeError) -> Verdict:
    return problem(found.cause) if isinstance(found, FloxNodeError) else ok(found)


def _cri(node: Node) -> CriStatus | str:
    _ = node.daemon  # containerd itself is another check's business
    try:
        return node.status
    except FloxNodeError as error:
        blamed = heal.blame(node.host, node.ledger)
        return blamed.cause if blamed is not None else error.cause


def _decide_cri(found: CriStatus | str) -> Verdict:
    return problem(found) if isinstance(found, str) else ok(f"containerd {found.version}")


def _findings(node: Node) -> tuple[Finding, ...]:
    return node.effective.findings


def decide_configuration(findings: tuple[Finding, ...]) -> Verdict:
    """Errors are problems, warnings warnings; notes are for `explain`."""
    texts = {
        severity: [f"{finding.file}: {finding.text}" for finding in findings if finding.severity == severity]
        for severity in ("error", "warning")
    }
    return told(texts["error"] or texts["warning"], state=State.PROBLEM if texts["error"] else State.WARNING)


def _pending(node: Node) -> tuple[Pending, ...]:
    running = Running(node.daemon, node.status)
    found = heal.registered(node.ledger) if node.installed else None
    registration = found[1].registration if found else node.registration
    return pending.find(node.host, running, registration, Handler(HANDLER, SHIM))


def decide_pending(found: tuple[Pending, ...]) -> Verdict:
    """What a restart of containerd, whoever does it, would bring beside what runs now."""
    return told([f"a restart would make live: {each}" for each in found[:5]], state=State.WARNING)


def _shared(node: Node) -> tuple[Sharing, ...]:
    running, files, handler = Running(node.daemon, node.status), node.host.files, Handler(HANDLER, SHIM)
    edits = node.registration.withdrawals(files, running.version, handler)
    if not edits:
        edits = node.registration.edits(files, running.version, handler, adopt=node.settings.adopt)
    return tuple(sharing.find(node.host, running, [edit.path for edit in edits]))


def decide_shared(found: tuple[Sharing, ...]) -> Verdict:
    """The other one serves the handler from its next start on, and nobody proves that it starts."""
    return told([str(each) for each in found], state=State.WARNING)


@dataclass(frozen=True)
class HandlerFacts:
    """What the running daemon says about our handler and its default one, and whether we should find it."""

    installed: bool
    binary_name: str | None
    features_known: bool | None
    default_features_known: bool | None


def _handler(node: Node) -> HandlerFacts:
    status = node.status
    handler = status.handlers.get(HANDLER)
    default = status.handlers.get(status.default_handler)
    return HandlerFacts(
        installed=node.installed,
        binary_name=None if handler is None else handler.binary_name,
        features_known=None if handler is None else handler.features_known,
        default_features_known=None if default is None else default.features_known,
    )


def decide_live(facts: HandlerFacts) -> Verdict:
    """Installed means that the running daemon serves our program under our name."""
    if not facts.installed:
        return skipped("flox-node is not installed here")
    if facts.binary_name is None:
        return problem(f"the running containerd serves no handler {HANDLER}")
    if facts.binary_name != SHIM:
        return problem(f"the handler {HANDLER} calls {facts.binary_name or 'the default runtime'} instead of {SHIM}")
    return ok()


def decide_features(facts: HandlerFacts) -> Verdict:
    """containerd 2.x asks each runtime for its features at its start; the kubelet needs them for hostUsers."""
    if facts.binary_name != SHIM:
        return skipped("our handler is not live")
    if facts.features_known is None:
        return skipped("this containerd does not tell (1.x)")
    if not facts.features_known and facts.default_features_known:
        return problem(f"containerd could not ask {SHIM} for its features when it started")
    return ok()


@dataclass(frozen=True)
class Rivals:
    """What an installer of the vendor's left: its handler's program, and its files."""

    handler: str
    files: tuple[str, ...]


def _rivals(node: Node) -> Rivals:
    cri = node.effective.cri
    options = {} if cri is None else cri.runtimes.get(HANDLER, {})
    names = str((options.get("options") or {}).get("BinaryName") or options.get("runtime_path") or "")
    shims = [
        f"{folder}/{name}"
        for folder in _VENDOR_SHIMS
        for name in node.host.files.listdir(folder)
        if name.startswith("containerd-shim-flox")
    ]
    folder, _, config = node.config_path.rpartition("/")
    backups = [f"{folder}/{name}" for name in node.host.files.listdir(folder) if name.startswith(f"{config}.bak")]
    return Rivals(
        "" if not options or names == SHIM else names or "another runtime", (*shims, *(backups if shims else ()))
    )


def decide_rivals(rivals: Rivals) -> Verdict:
    """A foreign handler is a problem; files of one that nothing names are only in the way of understanding."""
    if rivals.handler:
        return problem(f"another installer registered the handler {HANDLER} ({rivals.handler})")
    return told([f"left by another installer: {', '.join(rivals.files)}"] if rivals.files else [], state=State.WARNING)


def _inner_runtime(node: Node) -> tuple[str | None, bool]:
    path = policy.parse(node.host.files.read_optional(policy.PATH)).inner_runtime
    if path is None:
        return None, False
    found = node.host.processes.which(posixpath.basename(path), (posixpath.dirname(path),))
    return path, found is not None


def decide_inner_runtime(found: tuple[str | None, bool]) -> Verdict:
    """The shim hands every call on to this program."""
    path, there = found
    if path is None:
        return skipped("the policy names none; the shim takes the first runc of the usual folders")
    return ok(path) if there else problem(f"{path} is not there, or cannot be run")


@dataclass(frozen=True)
class CgroupFacts:
    """Who manages pods' cgroups in whose eyes: `kubelet` is "systemd", "cgroupfs", or empty where it does not say."""

    kubelet: str
    default: bool
    flox: bool | None


def _cgroups(node: Node) -> CgroupFacts:
    status = node.status

    def systemd(name: str) -> bool | None:
        handler = status.handlers.get(name)
        return None if handler is None else bool(handler.options.get("SystemdCgroup"))

    return CgroupFacts(_kubelet_driver(node), bool(systemd(status.default_handler)), systemd(HANDLER))


def _kubelet_driver(node: Node) -> str:
    arguments = [argument for process in node.kubelets for argument in process.argv]
    for position, argument in enumerate(arguments):
        if argument.startswith("--cgroup-driver"):
            return argument.partition("=")[2] or "".join(arguments[position + 1 : position + 2])
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("--config=")]
    for path in (*named, *facts(lambda platform: platform.kubelet_configs)):
        match = _DRIVER.search((node.host.files.read_optional(path) or b"").decode(errors="replace"))
        if match:
            return match[1]
    return ""


def decide_cgroups(facts: CgroupFacts) -> Verdict:
    """Kubelet, default handler and ours must agree, or pods land in two trees (or do not start at all)."""
    names = {True: "systemd", False: "cgroupfs"}
    causes = []
    if facts.flox is not None and facts.flox != facts.default:
        causes.append(f"the handler {HANDLER} uses {names[facts.flox]}, the default one {names[facts.default]}")
    if facts.kubelet and facts.kubelet != names[facts.default]:
        causes.append(f"the kubelet uses {facts.kubelet}, containerd's default handler {names[facts.default]}")
    return told(causes, otherwise=names[facts.default])


def _devices(node: Node) -> tuple[bool, Mapping[str, Any]]:
    return "nvidia" in node.status.handlers, node.status.config


def decide_devices(found: tuple[bool, Mapping[str, Any]]) -> Verdict:
    """A pod has one runtime class, so a Flox pod gets its GPU by CDI or not at all."""
    has_nvidia, config = found
    cdi = config.get("enableCDI", config.get("enable_cdi"))
    if not has_nvidia:
        return ok()
    return ok("by CDI") if cdi else warning("there is a handler nvidia, but containerd's enable_cdi is off")


CHECKS: tuple[Check[Any], ...] = (
    Check(
        "containerd-running",
        "a containerd serves the kubelet's CRI socket",
        "`systemctl status containerd`, `journalctl -u containerd`; another socket is named with --socket",
        _containerd,
        _decide_containerd,
    ),
    Check(
        "cri-answers",
        "containerd has loaded its CRI plugin",
        "`flox-node containerd explain` shows why the plugin does not load; repair that file and restart containerd. "
        "Where it is our handler, `flox-node install` registers it anew, and `flox-node uninstall` takes it out",
        _cri,
        _decide_cri,
    ),
    Check(
        "system-bus",
        "systemd can be asked to restart containerd",
        "`systemctl status dbus`; in a pod, mount the host's / with HostToContainer propagation",
        _try_bus,
        _decide_bus,
    ),
    Check(
        "configuration",
        "containerd's files say what they seem to say (imports, shadowed tables, schema)",
        "`flox-node containerd explain` shows each file and which one wins; an import of a missing file is removed, or "
        "the file put back",
        _findings,
        decide_configuration,
    ),
    Check(
        "pending-changes",
        "a restart of containerd would bring it back as it is",
        "correct or take back that change, or restart containerd yourself and see that the node is well: until then "
        "flox-node does not restart it",
        _pending,
        decide_pending,
    ),
    Check(
        "shared-configuration",
        "no other containerd reads the files that the handler is registered in",
        "give the other containerd files of its own (its `imports`): it takes the handler in at its next start, and "
        "flox-node neither proves that start nor restarts it",
        _shared,
        decide_shared,
    ),
    Check(
        "handler-live",
        "the running containerd serves the handler flox with our program",
        "`flox-node plan` shows what is missing, `flox-node install` registers it and restarts containerd",
        _handler,
        decide_live,
    ),
    Check(
        "handler-features",
        "containerd 2.x knows the handler's features",
        "run `/opt/flox-node/bin/flox-runtime features` on the node; once it answers, `systemctl restart containerd`",
        _handler,
        decide_features,
    ),
    Check(
        "foreign-handler",
        "no other installer has registered a handler flox",
        "uninstall with the other tool, or run `flox-node install --adopt`, whose uninstall brings the former handler "
        "back; left-over files can be removed",
        _rivals,
        decide_rivals,
    ),
    Check(
        "inner-runtime",
        "the OCI runtime that the shim hands over to can be run",
        "`flox-node install` finds it anew; or name it as inner_runtime with `flox-node policy apply`",
        _inner_runtime,
        decide_inner_runtime,
    ),
    Check(
        "cgroup-driver",
        "kubelet, default handler and flox use the same cgroup driver",
        "set the kubelet's cgroupDriver and SystemdCgroup of containerd's default runtime to the same, then run "
        "`flox-node install`; a pod made by hand with crictl needs a cgroup_parent that ends in .slice",
        _cgroups,
        decide_cgroups,
    ),
    Check(
        "gpu-devices",
        "GPUs reach Flox pods by CDI",
        "set enable_cdi in containerd's CRI plugin and let NVIDIA's toolkit write its CDI specification; a pod cannot "
        "have the runtime classes flox and nvidia at once",
        _devices,
        decide_devices,
    ),
)
