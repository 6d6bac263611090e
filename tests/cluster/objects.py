"""The Kubernetes objects of the tests, as `Cluster.apply` takes them."""

from typing import Any

from tests.bed.images import BUSYBOX

Object = dict[str, Any]


def pod(name: str, *command: str, node: str | None = None, **spec: object) -> Object:
    """A pod with one container `main` that runs `command` with the bed's busybox. spec: further fields of its spec."""
    container = {"name": "main", "image": BUSYBOX, "command": list(command), "stdin": True}
    fields = {"containers": [container], "terminationGracePeriodSeconds": 1, **spec}
    if node is not None:
        fields["nodeSelector"] = {"kubernetes.io/hostname": node}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": fields}


def deployment(name: str, replicas: int, *command: str) -> Object:
    """A Deployment of such pods, spread over the nodes."""
    return deployment_of(pod(name, *command), replicas)


def deployment_of(template: Object, replicas: int) -> Object:
    """A Deployment of pods like this one, spread over the nodes."""
    labels = template["metadata"]["labels"]
    spread = {"topologyKey": "kubernetes.io/hostname", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    template["spec"]["topologySpreadConstraints"] = [{**spread, "labelSelector": {"matchLabels": labels}}]
    metadata = {"labels": labels, "annotations": template["metadata"].get("annotations", {})}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": template["metadata"]["name"]},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": metadata, "spec": template["spec"]},
        },
    }


def service(name: str, port: int, **spec: object) -> Object:
    """A Service of the pods labelled `app: name`, its port 80 their `port`."""
    fields = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": port}], **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": fields}
