"""Where the API server keeps objects: their paths, and lists of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flox_node.kube.api import Api, ApiError, Object

_PAGE = "500"  # objects of an answer, as kubectl asks for


@dataclass(frozen=True)
class Resource:
    """A kind of objects."""

    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, name: str = "", *, namespace: str = "") -> str:
        """The path of one object, or of them all; without a namespace of those of the whole cluster."""
        root = "/apis" if "/" in self.api_version else "/api"
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}/{self.api_version}{within}/{self.plural}" + (f"/{name}" if name else "")


NODES = Resource("v1", "nodes", namespaced=False)
PODS = Resource("v1", "pods")
EVENTS = Resource("v1", "events")
CONFIG_MAPS = Resource("v1", "configmaps")
NAMESPACES = Resource("v1", "namespaces", namespaced=False)
DAEMON_SETS = Resource("apps/v1", "daemonsets")
REVISIONS = Resource("apps/v1", "controllerrevisions")
LEASES = Resource("coordination.k8s.io/v1", "leases")
RUNTIME_CLASSES = Resource("node.k8s.io/v1", "runtimeclasses", namespaced=False)
POLICIES = Resource("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", namespaced=False)
BINDINGS = Resource("admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", namespaced=False)
POD_MONITORS = Resource("monitoring.coreos.com/v1", "podmonitors")
_KINDS = {
    "Namespace": NAMESPACES,
    "ConfigMap": CONFIG_MAPS,
    "ServiceAccount": Resource("v1", "serviceaccounts"),
    "Service": Resource("v1", "services"),
    "DaemonSet": DAEMON_SETS,
    "RuntimeClass": RUNTIME_CLASSES,
    "PriorityClass": Resource("scheduling.k8s.io/v1", "priorityclasses", namespaced=False),
    "ClusterRole": Resource("rbac.authorization.k8s.io/v1", "clusterroles", namespaced=False),
    "ClusterRoleBinding": Resource("rbac.authorization.k8s.io/v1", "clusterrolebindings", namespaced=False),
    "Role": Resource("rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": Resource("rbac.authorization.k8s.io/v1", "rolebindings"),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies"),
    "ValidatingAdmissionPolicy": POLICIES,
    "ValidatingAdmissionPolicyBinding": BINDINGS,
    "PodMonitor": POD_MONITORS,
}


def path_of(object: Object) -> str:
    """The path of an object that we know the kind of."""
    metadata = object["metadata"]
    return _KINDS[object["kind"]].path(metadata["name"], namespace=metadata.get("namespace", ""))


def find(api: Api, path: str) -> Object | None:
    """The object at this path, or None."""
    try:
        return api.request("GET", path)
    except ApiError as error:
        if error.status == 404:
            return None
        raise


def listed(api: Api, path: str, query: Mapping[str, str] | None = None) -> Iterator[Object]:
    """All objects of a collection, page by page."""
    asked = {**(query or {}), "limit": _PAGE}
    while True:
        page = api.request("GET", path, query=asked)
        yield from page.get("items") or []
        token = (page.get("metadata") or {}).get("continue")
        if not token:
            return
        asked["continue"] = token
