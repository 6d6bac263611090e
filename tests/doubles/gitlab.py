"""GitLab as far as the runner's helper meets it in a pod: a repository over HTTP, and the artifacts of jobs.

    python -m tests.doubles.gitlab --host H --port N --folder DIR --token TOKEN

DIR/GROUP/PROJECT.git are bare repositories; DIR/artifacts/ID.zip is what the job ID has uploaded. As the real one it
answers 401 to git without `gitlab-ci-token` and the job's token, 403 to an artifact without it, and 404 where a job has
none.
"""

from __future__ import annotations

import argparse
import base64
import email.parser
import email.policy
import http.server
import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests.doubles import git_http


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    folder: Path
    token: str


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server

    def _any(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        job = re.fullmatch(r"/api/v4/jobs/(\d+)/artifacts", url.path)
        if job:
            self._artifacts(self.server.folder / f"artifacts/{job[1]}.zip", body)
        elif re.match(r"/[a-z]+/[a-z]+\.git/", url.path) and ".." not in url.path:
            self._git(url.path, url.query, body)
        else:
            self._answer(404)

    do_GET = do_POST = _any  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the jobs' logs tell."""

    def _artifacts(self, archive: Path, body: bytes) -> None:
        if self.headers.get("JOB-TOKEN") != self.server.token:
            self._answer(403)
        elif self.command == "POST":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            part = next(part for part in form.iter_parts() if part.get_filename() == "artifacts.zip")
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            archive.parent.mkdir(exist_ok=True)
            archive.write_bytes(content)
            self._answer(201, b"{}")
        elif archive.exists():
            self._answer(200, archive.read_bytes())
        else:
            self._answer(404)

    def _git(self, path: str, query: str, body: bytes) -> None:
        login = base64.b64encode(f"gitlab-ci-token:{self.server.token}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self._answer(401, headers={"WWW-Authenticate": 'Basic realm="GitLab"'})
            return
        status, fields, content = git_http.answer(self, self.server.folder, path, query, body)
        self._answer(status, content, headers=fields)

    def _answer(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def main() -> None:
    """Serve until killed; one line is printed when it answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    server = _Server((options.host, options.port), _Handler)
    server.folder, server.token = options.folder, options.token
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
