"""The API server as whoever holds a token sees it: plain requests, whatever they are answered with."""

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bed.processes import PATIENCE_S
from tests.cluster.cluster import Cluster
from tests.cluster.network import API_SERVER


@dataclass(frozen=True)
class Answer:
    """What the API server said: `message` is its reason for a refusal."""

    status: int
    body: Any

    @property
    def message(self) -> str:
        return str(self.body["message"]) if self.status >= http.HTTPStatus.BAD_REQUEST else ""


class Caller:
    """One connection to a `kubectl proxy`: a thousand requests in seconds, without a process for each."""

    def __init__(self, path: Path) -> None:
        self._connection = _OverSocket(path)

    def __call__(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None, patch: str = "json"
    ) -> Answer:
        """Send a request. patch: which kind of patch the body of a PATCH is."""
        kinds = {"json": "json-patch+json", "strategic": "strategic-merge-patch+json", "apply": "apply-patch+yaml"}
        content = {"Content-Type": f"application/{kinds[patch] if method == 'PATCH' else 'json'}"}
        self._connection.request(method, path, json.dumps(body), {**content, **(headers or {})})
        answer = self._connection.getresponse()
        try:
            data = answer.read()
        except http.client.IncompleteRead as error:  # a watch, cut off in its time
            data = error.partial
            self._connection.close()
        try:
            return Answer(answer.status, json.loads(data))
        except ValueError:
            return Answer(answer.status, {"message": data.decode(errors="replace")})

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Request:
    """A verb on a resource ("pods", "deployments.apps/scale"), and the request that it is. Writes are dry runs."""

    verb: str
    resource: str
    namespace: str
    method: str
    path: str


_METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "patch": "PATCH",
    "delete": "DELETE",
    "deletecollection": "DELETE",
}


def everything(call: Caller, name: str, namespaces: Sequence[str]) -> Iterator[Request]:
    """Every verb of every resource and subresource that the API server tells of, on things of this name."""
    groups = [group["preferredVersion"]["groupVersion"] for group in call("GET", "/apis").body["groups"]]
    for version in ("v1", *groups):
        base = "/api/v1" if version == "v1" else f"/apis/{version}"
        for described in call("GET", base).body["resources"]:
            resource, _, part = described["name"].partition("/")
            full = f"{resource}.{version.rpartition('/')[0]}".rstrip(".") + (f"/{part}" if part else "")
            for namespace in namespaces if described["namespaced"] else ("",):
                collection = f"{base}/namespaces/{namespace}/{resource}" if namespace else f"{base}/{resource}"
                for verb in described["verbs"]:
                    whole = verb in ("list", "watch", "deletecollection") or (verb == "create" and not part)
                    path = collection if whole else f"{collection}/{name}" + (f"/{part}" if part else "")
                    query = {"watch": "?watch=1&timeoutSeconds=1", "get": "", "list": ""}.get(verb, "?dryRun=All")
                    yield Request(verb, full, namespace, _METHODS[verb], path + query)


@contextlib.contextmanager
def caller(cluster: Cluster, token: str, folder: Path) -> Generator[Caller]:
    """A caller with `token`; its socket and kubeconfig are made in `folder`."""
    kubeconfig, path = folder / "kubeconfig.json", folder / "socket"
    name = "it"
    described = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": f"https://{API_SERVER}:6443",
                    "certificate-authority": str(cluster.control_plane.pki / "ca.crt"),
                },
            }
        ],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        "current-context": name,
    }
    kubeconfig.write_text(json.dumps(described))
    everything = ("--reject-paths=^$", "--reject-methods=^$", "--accept-hosts=.*")
    command = cluster.control_plane.command(
        "kubectl", f"--kubeconfig={kubeconfig}", "proxy", f"--unix-socket={path}", *everything
    )
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as proxy:
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not path.exists():
                assert proxy.poll() is None, "kubectl proxy ended"
                assert time.monotonic() < deadline, "kubectl proxy does not listen"
                time.sleep(0.02)
            with contextlib.closing(Caller(path)) as call:
                yield call
        finally:
            proxy.terminate()


class _OverSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
