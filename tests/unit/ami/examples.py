"""The files of ami/examples, and the calls that print them. `python -m tests.unit.ami.examples` writes them anew."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from flox_node.cli import app, output

FOLDER = Path(__file__).parents[3] / "ami/examples"
GROUP = ("--cluster", "demo", "--region", "eu-central-1")
IMAGE = ("--ami", "ami-0123456789abcdef0")
STOCK = (
    "--payload",
    "https://payloads.example.org/flox-node-0.1.0-x86_64.tar.gz",
    "--sha256",
    "0000000000000000000000000000000000000000000000000000000000000000",
)
CALLS = {
    "eksctl-image.yaml": ("nodegroup", *IMAGE),
    "eksctl-bootstrap.yaml": ("nodegroup", *STOCK),
    "karpenter-image.yaml": ("karpenter", *IMAGE),
    "karpenter-bootstrap.yaml": ("karpenter", *STOCK),
    "karpenter-graviton.yaml": ("karpenter", "--arch", "arm64", "--name", "flox-arm", *IMAGE),
    "terraform-image.tf": ("terraform", *IMAGE),
    "terraform-bootstrap.tf": ("terraform", *STOCK),
    "user-data.mime": ("userdata", *STOCK),
    "nodeconfig.yaml": ("nodeconfig",),
}


def printed(*arguments: str) -> str:
    """What `flox-node eks ...` prints."""
    result = CliRunner().invoke(app, ["eks", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    answer = result.return_value
    assert isinstance(answer, output.Result)
    assert isinstance(answer.text, bytes)
    return answer.text.decode()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, call in CALLS.items():
        (FOLDER / name).write_text(printed(*call, *GROUP))
