"""The API server as an administrator reaches it: kubeconfig, context and login are chosen as kubectl chooses them.

Login and transport are those of the library `kubernetes` (the extra `cluster`), its typed models are not used: it knows
certificates, tokens, exec plugins and OIDC, and writes a token that it had to renew back, as kubectl does.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flox_node import __version__
from flox_node.errors import UsageError
from flox_node.kube.transport import Transport

ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_CORRECT = "Correct what the text names; where it is nothing that you gave, somebody changed it just now: try again."
_REMEDIES = {
    400: _CORRECT,
    401: "The login was refused: `kubectl auth whoami` has to work with the same kubeconfig and context.",
    403: "The commands for a cluster need an administrator's rights (cluster-admin): ask for them.",
    404: "The object is gone, or the cluster does not know its kind (--pod-monitor needs the Prometheus operator).",
    409: _CORRECT,
    422: _CORRECT,
}
_ELSEWHERE = "Name a kubeconfig with --kubeconfig or KUBECONFIG, and its context with --context."


@dataclass(frozen=True)
class Files:
    """Where kubectl looks for kubeconfigs; those that are not there count only if they were named by an option."""

    paths: tuple[Path, ...]
    named: bool

    @classmethod
    def of(cls, option: Path | None, environment: Mapping[str, str]) -> Files:
        """The option wins over KUBECONFIG, which may name several files, and that over ~/.kube/config."""
        if option is not None:
            return cls((option,), named=True)
        several = [Path(part).expanduser() for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
        return cls(tuple(several) or (Path(environment.get("HOME") or Path.home(), ".kube/config"),), named=False)


def connect(
    option: Path | None = None, context: str | None = None, environment: Mapping[str, str] = os.environ
) -> Client:
    """Log in. option: `--kubeconfig`; context: `--context`, else the kubeconfig's own. In a pod neither is needed.

    Raises:
        UsageError: there is no kubeconfig, or it cannot be used, or the library is missing.
    """
    try:
        import kubernetes.client
        import kubernetes.config
        import yaml
    except ImportError as error:
        raise UsageError(
            f"The commands for a whole cluster need the Python package {error.name}.",
            remedy="pip install 'flox-node[cluster]'",
        ) from error
    files = Files.of(option, environment)
    configuration = kubernetes.client.Configuration()
    configuration.retries = False  # who waits tries again by himself, and says so
    configuration.keep_alive = True
    try:
        found = {path: yaml.safe_load(path.read_bytes()) for path in files.paths if files.named or path.exists()}
        found = {path: config for path, config in found.items() if config}
        with _said_by_the_library() as complaints:
            if found:
                kubernetes.config.load_kube_config(
                    os.pathsep.join(map(str, found)), context or current_context(found), configuration
                )
            elif context is None and not files.named and _in_pod(environment):
                kubernetes.config.load_incluster_config(configuration)
            else:
                looked = ", ".join(map(str, files.paths))
                raise UsageError(f"There is no kubeconfig: {looked} is not there or empty.", remedy=_ELSEWHERE)
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}.", remedy=_ELSEWHERE) from error
    except (yaml.YAMLError, kubernetes.config.ConfigException) as error:
        raise UsageError(f"The kubeconfig cannot be used: {error}", remedy=_ELSEWHERE) from error
    if complaints:
        raise UsageError(
            f"The login that the kubeconfig asks for failed: {'; '.join(complaints)}",
            remedy="Log in as for kubectl: `kubectl auth whoami` has to work with the same kubeconfig and context.",
        )
    return Client(kubernetes.client.ApiClient(configuration))


def current_context(configs: Mapping[Path, Any]) -> str:
    """The context that holds where none is named: that of the first file that has one.

    The library would take that of the last one.
    """
    for config in configs.values():
        if isinstance(config, dict) and config.get("current-context"):
            return str(config["current-context"])
    raise UsageError(f"{', '.join(map(str, configs))} has no current context.", remedy=_ELSEWHERE)


class Client(Transport):
    """An `Api` with the rights of whoever calls."""

    remedies = _REMEDIES

    def __init__(self, client: Any) -> None:
        """client: an ApiClient of the library."""
        self._client = client
        client.user_agent = f"flox-node/{__version__}"
        self.server = f"The API server {client.configuration.host}"

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        target: str,
        body: object,
        headers: Mapping[str, str],
        query: Mapping[str, str],
        timeout: float,
    ) -> Iterator[Any]:
        """See `Transport.open`."""
        request = self._client.param_serialize(
            method,
            target,
            query_params=list(query.items()),
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        with contextlib.closing(self._client.call_api(*request, _request_timeout=timeout).response) as answer:
            yield answer

    def unreachable(self) -> tuple[type[Exception], ...]:
        """See `Transport.unreachable`. What TLS refuses has an exception of its own, everything else is urllib3's."""
        import kubernetes.client
        import urllib3

        return (*super().unreachable(), urllib3.exceptions.HTTPError, kubernetes.client.ApiException)


def _in_pod(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("KUBERNETES_SERVICE_HOST")) and ACCOUNT_TOKEN.exists()


@contextlib.contextmanager
def _said_by_the_library() -> Iterator[list[str]]:
    """What the library logs: a login program that fails is an error there, and no exception."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    root, handler = logging.getLogger(), Handler(logging.ERROR)
    root.addHandler(handler)
    try:
        yield said
    finally:
        root.removeHandler(handler)
