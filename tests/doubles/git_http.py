"""Git over HTTP for the doubles, by git's own program."""

from __future__ import annotations

import http.server
import os
import subprocess
from pathlib import Path

# git as a server needs it: nothing of the machine's or the user's configuration.
ENVIRONMENT = {
    "PATH": os.environ.get("PATH", os.defpath),
    "LC_ALL": "C",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
}


def answer(
    request: http.server.BaseHTTPRequestHandler, folder: Path, path: str, query: str, body: bytes, user: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """The status, header fields and content with which `git http-backend` answers for the repositories in a folder."""
    environment = {
        **ENVIRONMENT,
        "GIT_PROJECT_ROOT": str(folder),
        "GIT_HTTP_EXPORT_ALL": "1",
        "PATH_INFO": path,
        "REQUEST_METHOD": request.command,
        "QUERY_STRING": query,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REMOTE_USER": user,
        "REMOTE_ADDR": "127.0.0.1",
    }
    done = subprocess.run(["git", "http-backend"], env=environment, input=body, capture_output=True, check=False)
    head, _, content = done.stdout.partition(b"\r\n\r\n")
    if done.returncode or not head:
        return 500, {}, b""
    fields = dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n"))
    return int(fields.pop("Status", "200").split()[0]), fields, content
