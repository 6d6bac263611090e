"""The Packer template: read by an independent parser, and judged by Packer itself where the machine has one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.unit.machine import program

AMI = Path(__file__).parents[3] / "ami"
VALUES = {
    "region": "eu-central-1",
    "kubernetes": "1.35",
    "payload": "https://payloads.example.org/flox-node.tar.gz",
    "payload_sha256": "0" * 64,
    "payload_version": "0.1.0",
}
# What Packer 1.6 (Debian 12's) does not know yet; the parser's test looks at it.
_NEWER = re.compile(r"^  metadata_options \{.*?^  \}\n|^  imds_support.*?\n", re.MULTILINE | re.DOTALL)
STUB = 'locals {\n  source_ami = "ami-0123456789abcdef0"\n}\n'


def parsed(name: str) -> dict[str, Any]:
    document: dict[str, Any] = hcl2.loads((AMI / name).read_text())
    return document


def plain(value: object) -> object:
    """A value without the quotes that some releases of the parser keep."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.strip('"') if isinstance(value, str) else value


def source() -> dict[str, Any]:
    (found,) = parsed("flox-eks.pkr.hcl")["source"]
    source = plain(found)
    assert isinstance(source, dict)
    return dict(source["amazon-ebs"]["flox"])


def test_the_image_is_encrypted_and_asks_for_tokens() -> None:
    ebs = source()
    (metadata,) = ebs["metadata_options"]
    assert metadata["http_tokens"] == "required"
    assert ebs["imds_support"] == "v2.0"
    assert ebs["encrypt_boot"] is True
    (volume,) = ebs["launch_block_device_mappings"]
    assert volume["encrypted"] is True
    assert volume["delete_on_termination"] is True
    assert ebs["temporary_key_pair_type"] == "ed25519"


def test_the_source_is_the_parameter_that_eks_publishes() -> None:
    (data,) = parsed("plugins.pkr.hcl")["data"]
    text = str(data)
    assert "/aws/service/eks/optimized-ami/${var.kubernetes}/amazon-linux-2023/${var.arch}/${var.variant}/$" in text
    assert "recommended" in text
    assert "amazon-eks-node-al2023-${var.arch}-${var.variant}-${var.kubernetes}-v${var.eks_release}" in text
    assert "local." not in text, "Packer 1.7 to 1.11 knows no locals when it evaluates data sources"


def test_every_variable_is_described_and_used() -> None:
    variables = {
        str(plain(name)): body for each in parsed("variables.pkr.hcl")["variable"] for name, body in each.items()
    }
    used = set(re.findall(r"\bvar\.(\w+)", "".join(path.read_text() for path in AMI.glob("*.pkr.hcl"))))
    assert set(variables) == used
    assert all(body.get("description") for body in variables.values())
    for arch in ("x86_64", "arm64"):
        given = plain(parsed(f"{arch}.pkrvars.hcl"))
        assert isinstance(given, dict)
        assert given["arch"] == arch
        assert set(given) <= set(variables)


def test_the_judgement_is_the_builds_last_step() -> None:
    (build,) = parsed("flox-eks.pkr.hcl")["build"]
    scripts = [
        str(script) for each in build["provisioner"] for body in each.values() for script in body.get("scripts", [])
    ]
    assert [script.strip('"').rpartition("/")[2] for script in scripts] == ["clean.sh", "check.sh"]
    assert "check.sh" in str(build["provisioner"][-1])
    assert build["post-processor"]


@pytest.fixture(scope="module")
def packer() -> str:
    return program("packer")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CHECKPOINT_DISABLE": "1",
            "HOME": "/tmp",  # nobody's credentials
            "PACKER_PLUGIN_PATH": os.environ.get("PACKER_PLUGIN_PATH", str(Path.home() / ".config/packer/plugins")),
        },
    )


def test_the_template_is_written_as_packer_writes_it(packer: str) -> None:
    done = run(packer, "fmt", "-check", AMI)
    assert done.returncode == 0, f"packer fmt {AMI} would change {done.stdout}"


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
@pytest.mark.parametrize("variant", ["standard", "nvidia", "neuron"])
def test_the_template_is_valid(packer: str, arch: str, variant: str, tmp_path: Path) -> None:
    folder = _for_this_packer(packer, tmp_path)
    done = _validate(packer, folder, arch=arch, variant=variant)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("wrong", [{"variant": "windows"}, {"arch": "riscv"}])
def test_a_wrong_value_is_told(packer: str, wrong: dict[str, str], tmp_path: Path) -> None:
    folder = _for_this_packer(packer, tmp_path)
    done = _validate(packer, folder, **{"arch": "x86_64", "variant": "standard", **wrong})
    assert done.returncode != 0
    assert "is one of standard" in done.stdout + done.stderr or "is x86_64 or arm64" in done.stdout + done.stderr


def _validate(packer: str, folder: Path, *, arch: str, variant: str) -> subprocess.CompletedProcess[str]:
    file = folder / (f"{arch}.pkrvars.hcl" if (folder / f"{arch}.pkrvars.hcl").exists() else "x86_64.pkrvars.hcl")
    values = {**VALUES, "arch": arch, "variant": variant}
    done = run(
        packer, "validate", f"-var-file={file}", *(f"-var={name}={text}" for name, text in values.items()), folder
    )
    if "Missing plugins" in done.stdout + done.stderr:
        pytest.skip("did NOT run: this Packer has no plugin for Amazon (`packer init ami`)")
    return done


def _for_this_packer(packer: str, tmp_path: Path) -> Path:
    """The template; for a Packer without plugins, without what needs them."""
    folder = tmp_path / "ami"
    shutil.copytree(AMI, folder)
    if "v1.6." in run(packer, "version").stdout:
        (folder / "plugins.pkr.hcl").write_text(STUB)
        template = folder / "flox-eks.pkr.hcl"
        template.write_text(_NEWER.sub("", template.read_text()))
    return folder
