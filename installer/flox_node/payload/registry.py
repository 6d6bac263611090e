"""Payloads in OCI registries: one artefact with one layer, the archive, named by the digest of its manifest.

Such a reference needs no further digest: the manifest's is in it, and the archive's is in the manifest.
Protocol: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urljoin, urlsplit

from flox_node.errors import CorruptError, OutsideError, UsageError
from flox_node.payload.fetch import Access, Client, DeniedError, Progress, download, is_loopback, patiently

if TYPE_CHECKING:
    import requests

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ARTEFACT = "application/vnd.flox-node.payload.v1"
LAYERS = {".tar.zst": f"{ARTEFACT}.tar+zstd", ".tar.gz": f"{ARTEFACT}.tar+gzip"}
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_MAX_MANIFEST = 4 << 20  # bytes; the protocol's own limit
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REFERENCE = re.compile(
    r"oci://(?P<host>[A-Za-z0-9.\[\]:-]+)/(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """`oci://host[:port]/name[:tag][@sha256:...]`."""

    host: str
    name: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises UsageError: it is none."""
        found = _REFERENCE.fullmatch(text)
        if found is None:
            raise UsageError(f"{text} is no reference to a registry: oci://REGISTRY/NAME@sha256:...")
        return cls(found["host"], found["name"], found["tag"] or "", found["digest"] or "")

    def __str__(self) -> str:
        tag, digest = self.tag and f":{self.tag}", self.digest and f"@{self.digest}"
        return f"oci://{self.host}/{self.name}{tag}{digest}"

    def url(self, what: str) -> str:
        """Where the registry has it; only one on this very machine may speak plain HTTP, as with every client."""
        plain = is_loopback(urlsplit(f"//{self.host}").hostname or "")
        return f"{'http' if plain else 'https'}://{self.host}/v2/{self.name}/{what}"


def pull(reference: Reference, destination: Path, access: Access, progress: Progress) -> None:
    """Bring the artefact's archive to `destination`, verified.

    Raises:
        UsageError: the reference names no digest.
        OutsideError: the registry refuses, or does not answer.
        CorruptError: what it serves is not what the digest names, or no payload.
    """
    if not reference.digest:
        raise UsageError("A payload is pulled by its digest: oci://REGISTRY/NAME@sha256:...")
    client = RegistryClient(access)
    url = reference.url(f"manifests/{reference.digest}")
    layer = parse_manifest(patiently(client, reference.host, lambda: _manifest(client, url)), reference.digest)
    blob = reference.url(f"blobs/{layer['digest']}")
    download(blob, destination, layer["digest"].removeprefix("sha256:"), client, progress, size=layer["size"])


def push(archive: Path, reference: Reference, access: Access) -> Reference:
    """Put an archive into a registry; the reference by which it can be pulled.

    Raises:
        UsageError: it is not named like an archive, or the reference names a digest.
        OutsideError: the registry refuses, or does not answer.
    """
    kind = next((kind for ending, kind in LAYERS.items() if archive.name.endswith(ending)), None)
    if kind is None or reference.digest:
        raise UsageError("Give an archive (.tar.zst or .tar.gz) and oci://REGISTRY/NAME[:TAG].")
    client = RegistryClient(access)
    with open(archive, "rb") as file:
        layer = {
            "mediaType": kind,
            "digest": f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}",
            "size": archive.stat().st_size,
        }
    empty = {"mediaType": _EMPTY_TYPE, "digest": _sha256(_EMPTY), "size": len(_EMPTY)}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTEFACT,
        "config": empty,
        "layers": [layer],
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    done = Reference(reference.host, reference.name, digest=_sha256(data))

    def upload() -> None:
        with open(archive, "rb") as file:
            _upload(client, reference, str(layer["digest"]), file)
        _upload(client, reference, str(empty["digest"]), _EMPTY)
        url = reference.url(f"manifests/{reference.tag or done.digest}")
        with client.request("PUT", url, {"Content-Type": MANIFEST}, data=data):
            pass

    patiently(client, reference.host, upload)
    return done


def parse_manifest(data: bytes, digest: str) -> Mapping[str, Any]:
    """The one layer of a payload's manifest.

    Raises:
        CorruptError: the bytes are not those that `digest` names, or no payload's manifest.
    """
    if _sha256(data) != digest:
        raise CorruptError(f"The registry's manifest has the digest {_sha256(data)}, not {digest}.")
    try:
        body = json.loads(data)
        (layer,) = body["layers"]
        is_ours = layer["mediaType"] in LAYERS.values() and _DIGEST.fullmatch(layer["digest"])
    except (ValueError, TypeError, KeyError, AttributeError):
        is_ours = None
    if not is_ours or type(layer["size"]) is not int or layer["size"] < 0:
        raise CorruptError(
            f"{digest} is no payload of flox-node.", remedy="`flox-node payload push` prints the reference to pull."
        )
    return dict(layer)


def _manifest(client: Client, url: str) -> bytes:
    with client.request("GET", url, {"Accept": MANIFEST}) as answer:
        data = answer.raw.read(_MAX_MANIFEST + 1, decode_content=False)
    if len(data) > _MAX_MANIFEST:
        raise CorruptError("The registry's manifest has an absurd size.")
    return bytes(data)


def _upload(client: Client, reference: Reference, digest: str, data: Any) -> None:
    try:
        with client.request("HEAD", reference.url(f"blobs/{digest}")):
            return
    except DeniedError as error:
        if error.status != 404:
            raise
    with client.request("POST", reference.url("blobs/uploads/")) as answer:
        there = urljoin(answer.url, answer.headers.get("Location", ""))
    there += ("&" if "?" in there else "?") + urlencode({"digest": digest})
    with client.request("PUT", there, {"Content-Type": "application/octet-stream"}, data=data):
        pass


class RegistryClient(Client):
    """A client that logs in as registries want it: by the token that a 401 says where to get."""

    _token = ""

    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, **body: Any
    ) -> requests.Response:
        """See Client; a token that is missing, too weak or too old is got once."""
        try:
            return super().request(method, url, headers, **body)
        except DeniedError as error:
            if error.status != 401 or not error.challenge.lower().startswith("bearer "):
                raise
            self._log_in(url, error.challenge)
        if hasattr(body.get("data"), "seek"):
            body["data"].seek(0)
        return super().request(method, url, headers, **body)

    def _log_in(self, url: str, challenge: str) -> None:
        told = dict(re.findall(r'([a-z]+)="([^"]*)"', challenge))
        realm = told.pop("realm", "")
        same = urlsplit(realm)[:2] == urlsplit(url)[:2]
        if not realm.startswith("https://") and not same:
            raise OutsideError(f"The registry names {realm!r} as the place to log in, which is not encrypted.")
        # The realm is the registry's own word for where its logins are checked, often on another host.
        login = self._access.authorization if self._access.authorization.startswith("Basic ") else ""
        client = Client(Access(login, self._access.ca))
        query = urlencode({name: told[name] for name in ("service", "scope") if name in told})

        def ask() -> bytes:
            with client.request("GET", f"{realm}{'&' if '?' in realm else '?'}{query}") as answer:
                return bytes(answer.raw.read(_MAX_MANIFEST, decode_content=False))

        try:
            body = json.loads(patiently(client, "the registry's login", ask))
            token = body.get("token") or body.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not token.isprintable():
            raise OutsideError("The registry's login answers without a token.")
        self._token = f"Bearer {token}"

    def _authorization(self, url: str) -> str:
        return self._token if self._token and self._is_origin(url) else super()._authorization(url)


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
