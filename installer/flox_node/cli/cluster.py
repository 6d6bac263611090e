"""`flox-node cluster install|status|doctor|upgrade|uninstall|collect`: a whole cluster, from where kubectl works."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flox_node.cli import manifests
from flox_node.cli.output import Result, application, command
from flox_node.cli.progress import Progress, nodes

if TYPE_CHECKING:
    from flox_node.kube.apply import Applied
    from flox_node.kube.kubeconfig import Client
    from flox_node.kube.manifests import Options
    from flox_node.kube.rollout import Rollout

app = application(
    "Make the nodes of a cluster Flox nodes with one DaemonSet; they take kubectl's kubeconfig and context."
)


class DryRun(StrEnum):
    """What `--dry-run` takes."""

    SERVER = "server"


Kubeconfig = Annotated[
    Path | None,
    typer.Option("--kubeconfig", help="The kubeconfig.", show_default="KUBECONFIG, ~/.kube/config, or the pod's own"),
]
Context = Annotated[
    str | None, typer.Option("--context", help="The kubeconfig's context.", show_default="the current one")
]
Timeout = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait for the nodes.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait for the nodes.")]
Force = Annotated[
    bool, typer.Option("--force-conflicts", help="Take over fields that somebody else set to another value.")
]
ServerDryRun = Annotated[
    DryRun | None,
    typer.Option("--dry-run", help="'server': have the API server check everything, and change nothing."),
]
_TIMEOUT_S = 900.0
_GOES_ON = "Stopped waiting; the nodes go on by themselves. `flox-node cluster status` shows how far they are."
_COMES_BACK = "Interrupted; `flox-node cluster uninstall` goes on where it stopped."


@command(app, example="flox-node cluster install --registry registry.example.com/mirror")
def install(
    image: manifests.Image = None,
    registry: manifests.Registry = None,
    node_selector: manifests.NodeSelector = None,
    overhead: manifests.Overhead = None,
    toleration: manifests.Tolerations = None,
    settings: manifests.SettingsFile = None,
    policy: manifests.PolicyFile = None,
    pod_monitor: manifests.PodMonitor = False,
    image_pull_policy: manifests.ImagePullPolicy = None,
    dry_run: ServerDryRun = None,
    force_conflicts: Force = False,
    no_wait: NoWait = False,
    timeout: Timeout = _TIMEOUT_S,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> Result:
    """Apply the DaemonSet and what it needs, and wait until every selected node is a Flox node, or finally refuses.

    Nothing is written when anything of it cannot be applied. Nodes that refuse are told, and are no failure, unless no
    other is left. Given again with other options, it changes what is installed to them.
    """
    from flox_node.kube import install as kube

    options = manifests.options(
        *(image, registry, node_selector, overhead, toleration, settings, policy),
        *(pod_monitor, image_pull_policy, "install"),
    )
    api = _connect(kubeconfig, context)
    kube.require_supported(api)
    return _bring(api, options, dry_run, force=force_conflicts, wait=not no_wait, timeout=timeout)


@command(app, example="flox-node cluster upgrade --image registry.example.com/flox-node:1.2.0")
def upgrade(
    image: Annotated[str, typer.Option("--image", help="The image of the new version.", show_default=False)],
    dry_run: ServerDryRun = None,
    force_conflicts: Force = False,
    no_wait: NoWait = False,
    timeout: Timeout = _TIMEOUT_S,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> Result:
    """Bring what is installed to another version, with the settings that it has, and wait for the nodes.

    Pods that run go on running, and containerd is not restarted.
    """
    from flox_node.kube import install as kube

    api = _connect(kubeconfig, context)
    kube.require_supported(api)
    options = kube.live_options(api, image)
    return _bring(api, options, dry_run, force=force_conflicts, wait=not no_wait, timeout=timeout)


@command(app, example="flox-node cluster status --json")
def status(kubeconfig: Kubeconfig = None, context: Context = None) -> Result:
    """Show the nodes with their platform, versions and state. Exits with 7 while one is not ready, nor refused."""
    from flox_node.errors import DriftError
    from flox_node.kube.waiting import look

    found = look(_connect(kubeconfig, context))
    if found is None:
        return Result(
            {"installed": False}, "flox-node is not installed in this cluster.\n-> `flox-node cluster install`"
        )
    error = None
    if found.open():
        error = DriftError(
            f"{len(found.open())} of {len(found.nodes)} nodes are not ready.",
            remedy="`flox-node cluster doctor` looks for the reasons.",
        )
    return Result({"installed": True, **_as_dict(found)}, lambda: nodes(found), error)


@command(app, example="flox-node cluster doctor --context production")
def doctor(
    everything: Annotated[bool, typer.Option("--all", help="Show what is well, too.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> Result:
    """Look for what keeps Flox pods from running here; each finding with its remedy. Exits with 7 on a problem.

    Writes nothing. A cluster without flox-node can be examined, too.
    """
    from flox_node.cli.doctor import told
    from flox_node.kube.doctor import examine

    return told(examine(_connect(kubeconfig, context)), everything=everything)


@command(app, example="flox-node cluster uninstall --timeout 1800")
def uninstall(
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Remove the nodes' stores and policies too, if an install made them."),
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Leave nodes installed that the DaemonSet does not select (any more).")
    ] = False,
    timeout: Timeout = _TIMEOUT_S,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> Result:
    """Make every node what it was before, and remove flox-node from the cluster. Refused (6) while Flox pods run.

    A run that was interrupted is finished by the next. Nodes that are down are named (9), and reverted once they are
    back: until then the DaemonSet stays.
    """
    from flox_node.kube.uninstall import uninstall as kube

    api = _connect(kubeconfig, context)
    done: list[str] = []
    with Progress(interrupted=_COMES_BACK) as progress:

        def say(text: str) -> None:
            done.append(text)
            progress.say(text)

        found = kube(api, say=say, show=progress.show, timeout=timeout, purge=purge, abandon=abandon)
    text = "The cluster is as before." if done else "Nothing to do: flox-node is not installed in this cluster."
    body = {"changed": bool(done), "steps": done, **_as_dict(found)}
    return Result(body, lambda: [*(nodes(found) if found else ()), text])


@command(app, example="flox-node cluster collect -o support.tar.gz")
def collect(
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle to write, a .tar.gz.", show_default=False)],
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> Result:
    """Pack what a helper needs (our objects, nodes' conditions, logs, events) into one archive, with no secret in it.

    No Secret is read, and other people's pods go in without their commands and variables. Read it before you pass it
    on.
    """
    from flox_node.cli.doctor import written
    from flox_node.kube.collect import collect as kube

    return written(kube(_connect(kubeconfig, context)), output)


def _connect(kubeconfig: Path | None, context: str | None) -> Client:
    from flox_node.kube.kubeconfig import connect

    return connect(kubeconfig, context)


def _bring(
    api: Client,
    options: Options,
    dry_run: DryRun | None,
    *,
    force: bool,
    wait: bool,
    timeout: float,
) -> Result:
    """Apply, wait, tell; the end of `install` and of `upgrade`."""
    from flox_node.errors import FloxNodeError
    from flox_node.kube.apply import apply
    from flox_node.kube.install import require_ready
    from flox_node.kube.manifests import objects
    from flox_node.kube.waiting import follow

    applied: list[Applied] = []
    followed = None
    with Progress(interrupted=_GOES_ON) as progress:
        for each in apply(api, objects(options), dry_run=dry_run is not None, force=force):
            applied.append(each)
            progress.say(f"{each}{' (dry run)' if dry_run else ''}")
        if wait and dry_run is None:
            followed = follow(api, progress.show, timeout=timeout)
    error: FloxNodeError | None = None
    if followed:
        try:
            require_ready(followed)
        except FloxNodeError as failure:  # the nodes are shown first
            error = failure
    found = followed.rollout if followed else None
    changes = [dataclasses.asdict(each) for each in applied]
    body = {"dry_run": dry_run is not None, "objects": changes, **_as_dict(found)}
    return Result(body, lambda: nodes(found) if found else (), error)


def _as_dict(found: Rollout | None) -> dict[str, Any]:
    return {} if found is None else {"state": found.state, **dataclasses.asdict(found)}
