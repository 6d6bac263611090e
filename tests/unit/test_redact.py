"""What goes out of texts and tables that are passed on, and what stays readable."""

from __future__ import annotations

import pytest

from flox_node.redact import MASK, Redactor, secrets_in

SECRET = "s3cr3t-Value_of-somebody"
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.eyJzdWIiOiJzeXN0ZW06bm9kZTp3b3JrZXIifQ.c2lnbmF0dXJl_-x"


@pytest.mark.parametrize(
    "text",
    [
        f"flox_pat_{SECRET}",
        f"token {JWT} was refused",
        f"Authorization: Bearer {SECRET}",
        f'{{"headers": {{"Authorization": "Basic {SECRET}=="}}}}',
        f'password = "{SECRET}"',
        f'msg="pull failed" registry.auth="{SECRET}"',
        f'{{"level":"error","msg":"{{\\"password\\":\\"{SECRET}\\"}}"}}',
        f"https://user:{SECRET}@registry.example.com/v2/",
        f"machine api.flox.dev login oauth password {SECRET}",
        f"kubelet --bootstrap-token={SECRET} --v=2",
        f"kubelet --bootstrap-token {SECRET} --v=2",
        f"env AWS_SECRET_ACCESS_KEY={SECRET} MY_OWN_THING={SECRET}",
        f'DATABASE_URL="postgres://{SECRET}"',
        f"floxhub-token: {SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\nMIIE{SECRET}\n-----END RSA PRIVATE KEY-----\n",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        f"cifs //server/share username=u,password={SECRET},uid=0",
    ],
)
def test_what_looks_like_a_secret_goes(text: str) -> None:
    cleaned = Redactor().text(text)
    assert SECRET not in cleaned
    assert JWT not in cleaned
    assert MASK in cleaned


@pytest.mark.parametrize(
    "text",
    [
        "containerd.service: Main process exited, code=exited, status=1/FAILURE",
        'level=error msg="failed to load plugin" error="no runtime for flox is configured"',
        "environment demo/hello:3 at /nix/store/0123456789abcdfghijklmnpqrsvwxyz-env",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redactor().text(text) == text


def test_a_known_secret_goes_wherever_it_stands() -> None:
    assert SECRET not in Redactor([SECRET]).text(f"in the middle {SECRET}of a word")


def test_what_stands_under_a_secrets_key_goes_as_a_whole_and_its_texts_are_known_secrets() -> None:
    data = {"registry": {"configs": {"r.example": {"auth": {"username": "u", "password": SECRET}, "tls": {"ca": "x"}}}}}
    cleaned = Redactor().data(data)
    assert SECRET not in repr(cleaned)
    assert cleaned["registry"]["configs"]["r.example"]["tls"] == {"ca": "x"}
    assert set(secrets_in(data)) == {"u", SECRET}
