"""The API server as an administrator reaches it: kubeconfig, context and login are chosen as kubectl chooses them.

Login and transport are those of the library `kubernetes` (the extra `cluster`), its typed models are not used: it knows
certificates, tokens, exec plugins and OIDC, and writes a token that it had to renew back, as kubectl does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flox_node import __version__
from flox_node.errors import UsageError
from flox_node.kube.api import ApiError, Object

ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_JSON = "application/json"
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


class Client:
    """An `Api` with the rights of whoever calls."""

    def __init__(self, client: Any) -> None:
        """client: an ApiClient of the library."""
        self._client = client
        client.user_agent = f"flox-node/{__version__}"

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._client.configuration.host)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = _JSON,
        query: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Object:
        """See `Api.request`."""
        with self._reported(method, path):
            return _object(method, path, self._answer(method, path, body, content_type, query or {}, timeout))

    def text(self, path: str, *, query: Mapping[str, str] | None = None, timeout: float = 30.0) -> str:
        """What is no object: a container's log.

        Raises:
            ApiError: as of `request`.
        """
        with self._reported("GET", path):
            answer = self._answer("GET", path, None, "", query or {}, timeout)
            if answer.status >= 400:
                _object("GET", path, answer)
            return str(answer.data.decode(errors="replace"))

    def watch(self, path: str, *, query: Mapping[str, str], timeout_s: float) -> Iterator[Object]:
        """See `Api.watch`."""
        end = time.monotonic() + timeout_s
        asked = {**query, "watch": "1", "timeoutSeconds": str(max(1, int(timeout_s)))}
        with self._reported("WATCH", path):
            answer = self._answer("GET", path, None, _JSON, asked, timeout_s + 10)
            if answer.status >= 400:
                _object("WATCH", path, answer)
            while time.monotonic() < end and (line := answer.readline()):
                event: Object = json.loads(line)
                yield event

    def _answer(
        self, method: str, path: str, body: object, content_type: str, query: Mapping[str, str], timeout: float
    ) -> Any:
        headers = {"Accept": _JSON if content_type else "*/*"}
        if body is not None:
            headers["Content-Type"] = content_type
        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        return self._client.call_api(*request, _request_timeout=timeout).response

    @contextlib.contextmanager
    def _reported(self, method: str, path: str) -> Iterator[None]:
        import kubernetes.client
        import urllib3

        # The library names what TLS refuses by an exception of its own, and everything else by urllib3's.
        unreachable = (urllib3.exceptions.HTTPError, kubernetes.client.ApiException, OSError, ValueError)
        try:
            yield
        except unreachable as error:
            why = f"{type(error).__name__}: {error}"
            raise ApiError(f"The API server {self.server} does not answer {method} {path}: {why}") from error


def _object(method: str, path: str, answer: Any) -> Object:
    data = answer.data or b"{}"
    if answer.status >= 400:
        said = _status(data)
        reason = str(said.get("reason") or answer.reason)
        raise ApiError(
            f"The API server refused {method} {path}: {said.get('message') or reason}",
            status=answer.status,
            reason=reason,
            remedy=_REMEDIES.get(answer.status, ""),
            details=said.get("details"),
        )
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ApiError(f"The API server answered {method} {path} with no object.")
    return found


def _status(data: bytes) -> Object:
    """What a refusal says. Of a group that it does not serve the API server says so in plain text."""
    try:
        said = json.loads(data)
    except ValueError:
        said = None
    return said if isinstance(said, dict) else {"message": data.decode(errors="replace").strip()[:500]}


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
