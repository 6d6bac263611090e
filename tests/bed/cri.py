"""The tests' CRI client: what the kubelet asks of containerd, over gRPC."""

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# gRPC would make a forked child fit to go on using it. One in twenty died of that before its exec ("Epoll1Poller: bad
# file descriptor"), and what we fork always execs.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import grpc

from tests.bed.images import BUSYBOX
from tests.bed.processes import PATIENCE_S

_messages, _services = grpc.protos_and_services("tests/bed/cri.proto")  # compiled at import, found on sys.path
LOGS = "/var/log/pods"  # as the kubelet's
_USERS = 1 << 20  # the first id of the node's that a pod without the node's users gets


class CriError(Exception):
    """A call failed; `code` is gRPC's name for the kind ("UNKNOWN", "UNAVAILABLE", ...), the text is containerd's."""

    def __init__(self, method: str, error: grpc.RpcError) -> None:
        self.code: str = error.code().name
        self.details: str = error.details() or ""
        super().__init__(f"{method}: {self.code}: {self.details}")


@dataclass(frozen=True)
class Sandbox:
    """A pod sandbox that was run; containers of it are created with the same configuration."""

    id: str
    name: str
    config: Any = field(repr=False)


@dataclass(frozen=True)
class Output:
    """What a command in a container left."""

    exit_code: int
    stdout: str
    stderr: str


class CriClient:
    """A connection to one CRI socket. It survives restarts of the daemon behind it."""

    def __init__(self, socket: Path, node_root: Path) -> None:
        """node_root: where the node's `/` is seen from here; container logs are read below it."""
        options = [
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 100),
            ("grpc.use_local_subchannel_pool", 1),  # else a dead connection of an earlier client is shared
        ]
        self._node_root = node_root
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=options)
        self._runtime = _services.RuntimeServiceStub(self._channel)
        self._images = _services.ImageServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def wait_ready(self, timeout: float = PATIENCE_S) -> None:
        """Wait up to `timeout` seconds until the CRI answers."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.version()
            except CriError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
            else:
                return

    def version(self) -> str:
        """The runtime's version, e.g. "2.1.9+unknown"."""
        return str(self._call("Version", _messages.VersionRequest(), timeout=5).runtime_version)

    def status(self) -> Any:
        """The runtime's verbose status: `.status.conditions`, `.runtime_handlers` (empty on 1.x), `.info`."""
        return self._call("Status", _messages.StatusRequest(verbose=True))

    def effective_config(self) -> dict[str, Any]:
        """The CRI plugin's configuration as the running daemon uses it."""
        return dict(json.loads(self.status().info["config"]))

    def handlers(self) -> dict[str, Any]:
        """The runtime handlers of the running daemon and their tables, on every release."""
        return dict(self.effective_config()["containerd"]["runtimes"])

    def images(self) -> list[str]:
        """The names of the images that the node holds."""
        response = self._call("ListImages", _messages.Empty())
        return sorted(tag for image in response.images for tag in image.repo_tags)

    def pull(self, image: str) -> None:
        """Pull an image from a registry, as for a pod that names it."""
        self._call("PullImage", _messages.PullImageRequest(image=_messages.ImageSpec(image=image)))

    def run_sandbox(
        self,
        handler: str = "",
        *,
        name: str = "pod",
        namespace: str = "default",
        uid: str = "",
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        cgroup_parent: str = "",
        host_pid: bool = False,
        privileged: bool = False,
        host_users: bool = True,
        timeout: float = PATIENCE_S,
    ) -> Sandbox:
        """Run a pod sandbox, with the node's users in the node's network namespace (so no CNI is needed).

        handler: "" is containerd's default. uid: a fresh one by default.
        cgroup_parent: e.g. "/kubepods.slice"; needed where containerd uses systemd's cgroups.
        host_users: False asks for a user namespace, and so for a network of the pod's own: that needs a CNI.
        """
        uid = uid or str(uuid.uuid4())
        namespaces = _namespaces(host_pid, host_network=host_users)
        if not host_users:
            mapping = [_messages.IDMapping(host_id=_USERS, container_id=0, length=65536)]
            namespaces.userns_options.CopyFrom(_messages.UserNamespace(mode=_messages.POD, uids=mapping, gids=mapping))
        context = _messages.LinuxSandboxSecurityContext(namespace_options=namespaces, privileged=privileged)
        config = _messages.PodSandboxConfig(
            metadata=_messages.PodSandboxMetadata(name=name, uid=uid, namespace=namespace),
            log_directory=f"{LOGS}/{namespace}_{name}_{uid}",
            annotations=annotations or {},
            labels=labels or {},
            linux=_messages.LinuxPodSandboxConfig(cgroup_parent=cgroup_parent, security_context=context),
        )
        (self._node_root / config.log_directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
        request = _messages.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return Sandbox(self._call("RunPodSandbox", request, timeout=timeout).id, name, config)

    def create_container(
        self,
        sandbox: Sandbox,
        command: Sequence[str] = (),
        *,
        image: str = BUSYBOX,
        name: str = "main",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        mounts: Mapping[str, str] | None = None,
        working_dir: str = "",
        user: int | None = None,
        privileged: bool = False,
        read_only: bool = False,
        tty: bool = False,
        target: str = "",
    ) -> str:
        """Create a container in a sandbox; its id.

        command, args: as in a pod's spec. mounts: folders of the container -> folders of the node.
        target: the container whose processes it sees, as an ephemeral container does.
        """
        options = _messages.NamespaceOption()
        options.CopyFrom(sandbox.config.linux.security_context.namespace_options)
        if target:
            options.pid, options.target_id = _messages.TARGET, target
        context = _messages.LinuxContainerSecurityContext(
            namespace_options=options, privileged=privileged, readonly_rootfs=read_only
        )
        if user is not None:
            context.run_as_user.value = user
        config = _messages.ContainerConfig(
            metadata=_messages.ContainerMetadata(name=name),
            image=_messages.ImageSpec(image=image),
            command=command,
            args=args,
            working_dir=working_dir,
            envs=[_messages.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            mounts=[_messages.Mount(container_path=to, host_path=source) for to, source in (mounts or {}).items()],
            annotations=annotations or {},
            log_path=f"{name}.log",
            tty=tty,
            linux=_messages.LinuxContainerConfig(security_context=context),
        )
        request = _messages.CreateContainerRequest(
            pod_sandbox_id=sandbox.id, config=config, sandbox_config=sandbox.config
        )
        return str(self._call("CreateContainer", request).id)

    def start(self, container: str, *, timeout: float = PATIENCE_S) -> None:
        """Start a created container."""
        self._call("StartContainer", _messages.IdRequest(id=container), timeout=timeout)

    def run_container(self, sandbox: Sandbox, command: Sequence[str] = (), **options: Any) -> str:
        """Create and start a container; its id. Options as of `create_container`."""
        container = self.create_container(sandbox, command, **options)
        self.start(container)
        return container

    def exec(self, container: str, *command: str, timeout: int = 60) -> Output:
        """Run a command in a running container, as a probe does; `timeout` in seconds."""
        request = _messages.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout)
        response = self._call("ExecSync", request, timeout=timeout + PATIENCE_S)
        return Output(response.exit_code, response.stdout.decode(), response.stderr.decode())

    def container_status(self, container: str) -> Any:
        """The container's status: `.state`, `.exit_code`, `.reason`, `.message`, `.log_path`."""
        return self._status_of(container).status

    def container_pid(self, container: str) -> int:
        """The pid of the container's first process, as the node's own PID namespace counts."""
        return int(json.loads(self._status_of(container).info["info"])["pid"])

    def wait_exited(self, container: str, timeout: float = PATIENCE_S) -> Any:
        """Wait up to `timeout` seconds for the container to end; its status."""
        deadline = time.monotonic() + timeout
        while (status := self.container_status(container)).state != _messages.CONTAINER_EXITED:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Container {container} is in state {status.state} after {timeout} s.")
            time.sleep(0.02)
        return status

    def logs(self, container: str) -> str:
        """What the container has written to stdout and stderr so far; containerd may swap lines of the two."""
        path = self._node_root / self.container_status(container).log_path.lstrip("/")
        # One entry a line: TIME STREAM TAGS TEXT, where the tag P marks a piece of a longer line.
        entries = (line.split(" ", 3) for line in path.read_text().splitlines())
        return "".join(text + ("" if tag == "P" else "\n") for _, _, tag, text in entries)

    def stop(self, container: str, *, grace: int = 0) -> None:
        """Stop a container, killing it `grace` seconds after SIGTERM."""
        request = _messages.StopContainerRequest(container_id=container, timeout=grace)
        self._call("StopContainer", request, timeout=grace + PATIENCE_S)

    def remove(self, container: str) -> None:
        """Remove a stopped container."""
        self._call("RemoveContainer", _messages.IdRequest(id=container))

    def stop_sandbox(self, sandbox: Sandbox | str) -> None:
        """Stop a sandbox and every container of it."""
        self._call("StopPodSandbox", _messages.IdRequest(id=_id(sandbox)))

    def remove_sandbox(self, sandbox: Sandbox | str) -> None:
        """Stop and remove a sandbox with everything in it."""
        self.stop_sandbox(sandbox)
        self._call("RemovePodSandbox", _messages.IdRequest(id=_id(sandbox)))

    def sandboxes(self) -> list[Any]:
        """Every sandbox of the node: `.id`, `.metadata`, `.state`, `.runtime_handler`, ..."""
        return list(self._call("ListPodSandbox", _messages.Empty()).items)

    def containers(self) -> list[Any]:
        """Every container of the node: `.id`, `.pod_sandbox_id`, `.metadata`, `.state`, ..."""
        return list(self._call("ListContainers", _messages.Empty()).containers)

    def _status_of(self, container: str) -> Any:
        return self._call("ContainerStatus", _messages.StatusOfRequest(id=container, verbose=True))

    def _call(self, method: str, request: Any, timeout: float = PATIENCE_S) -> Any:
        stub = self._images if method in ("ListImages", "PullImage") else self._runtime
        try:
            return getattr(stub, method)(request, timeout=timeout)
        except grpc.RpcError as error:
            raise CriError(method, error) from None


def _id(sandbox: Sandbox | str) -> str:
    return sandbox.id if isinstance(sandbox, Sandbox) else sandbox


def _namespaces(host_pid: bool, host_network: bool) -> Any:
    return _messages.NamespaceOption(
        network=_messages.NODE if host_network else _messages.POD,
        pid=_messages.NODE if host_pid else _messages.CONTAINER,
        ipc=_messages.POD,
    )
