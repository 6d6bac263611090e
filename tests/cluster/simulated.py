"""`python -m tests.cluster.simulated KUBECONFIG NODES IDLE`: the reporters of so many nodes against a real API server.

Each is the product's own reporter, with a node side that needs a moment to install. They ask as the service account on
their node, so admission, optimistic locking and watches are real. Prints one JSON object: how many worked at a time,
in which order, what each asked, and what an hour of IDLE nodes asks.
"""

import base64
import collections
import json
import os
import random
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from flox_node.agent import exchange
from flox_node.agent.exchange import Granted, NodeState
from flox_node.agent.report import Reporter
from flox_node.errors import FloxNodeError
from flox_node.kube.api import Object
from flox_node.kube.incluster import InCluster
from flox_node.kube.names import Reason

NAMESPACE = "flox-node"
_TRIES = 8


class Impersonated(InCluster):
    """The API server for the service account on one node, by an administrator who may impersonate it."""

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext, node: str) -> None:
        self._address, self._tls, self._node = address, tls, node
        self.asked: collections.Counter[str] = collections.Counter()
        self.sent = 0

    def _identity(self) -> dict[str, str]:
        self.sent += 1
        return {
            "Impersonate-User": f"system:serviceaccount:{NAMESPACE}:flox-node",
            "Impersonate-Group": "system:authenticated",
            "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name": self._node,
        }

    def request(self, method: str, path: str, body: object = None, **options: Any) -> Object:
        self.asked[method] += 1
        return super().request(method, path, body, **options)

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Any:
        self.asked["WATCH"] += 1
        return super().watch(path, query=query, timeout_s=timeout_s)


class Run:
    """All nodes of one run: who works, how many at a time, in which order they ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: set[str] = set()
        self.most = self.most_before_proof = 0
        self.ended: list[str] = []
        self.failed: list[str] = []

    def work(self, node: str) -> None:
        with self._lock:
            self._working.add(node)
            self.most = max(self.most, len(self._working))
            if not self.ended:
                self.most_before_proof = max(self.most_before_proof, len(self._working))
        time.sleep(random.uniform(0.5, 1.5))
        with self._lock:
            self._working.discard(node)
            self.ended.append(node)


def install(api: Impersonated, node: str, folder: Path, run: Run) -> None:
    """One node's install as the API server sees it."""
    own, other = folder / "reporter", folder / "node"
    own.mkdir(parents=True)
    other.mkdir()
    waiting = NodeState(Reason.WAITING, "waiting", slot=node, target="payload", share="10%")
    exchange.write(other, "state.json", waiting)

    def work() -> None:
        while exchange.read(own, "slot.json", Granted) != Granted(node):
            time.sleep(0.3)
        run.work(node)
        live = NodeState(Reason.INSTALLED, "live", live=True, target="payload", share="10%")
        exchange.write(other, "state.json", live)

    threading.Thread(target=work, daemon=True).start()
    for failures in range(1, _TRIES + 1):
        try:
            Reporter(api, node, NAMESPACE, own=own, other=other).run()
        except FloxNodeError as error:
            run.failed.append(f"{node}: {error}")
            time.sleep(2.0**failures)  # as the loop that starts it again
        else:
            return


def main() -> None:
    config, count, idle = yaml.safe_load(Path(sys.argv[1]).read_text()), int(sys.argv[2]), int(sys.argv[3])
    url = urlsplit(config["clusters"][0]["cluster"]["server"])
    tls = _tls(config)
    assert url.hostname is not None
    address = (url.hostname, url.port or 443)
    apis = {f"sim-{number}": Impersonated(address, tls, f"sim-{number}") for number in range(count)}
    run = Run()
    threading.stack_size(256 << 10)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(target=install, args=(api, node, Path(folder) / node, run)) for node, api in apis.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seconds = time.monotonic() - started
    sent = [api.sent for api in apis.values()]
    started = time.monotonic()
    for number in range(idle):  # a reporter with nothing to tell looks once an hour
        Impersonated(address, tls, f"sim-{number}").request("GET", f"/api/v1/nodes/sim-{number}")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "installed": len(run.ended),
                "failures": run.failed,
                "most": run.most,
                "most_before_proof": run.most_before_proof,
                "requests": sorted(sent),
                "kinds": dict(sum((api.asked for api in apis.values()), collections.Counter())),
                "idle_seconds": time.monotonic() - started,
            }
        )
    )


def _tls(config: Any) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cadata=_decoded(config["clusters"][0]["cluster"]["certificate-authority-data"])
    )
    user = config["users"][0]["user"]
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads that still watch are of no interest
