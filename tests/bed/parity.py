"""What /proc tells of a container's first process, so that two containers can be compared."""

import re

_FILES = ("environ", "cmdline", "mountinfo", "limits", "status", "oom_score_adj", "attr/current", "cgroup")
SCRIPT = "; ".join(f"echo @@{file}; cat /proc/1/{file} 2>&1; echo" for file in _FILES)
"""Prints it, in the container's shell."""

_IDS = {
    r"[0-9a-f]{64}": "ID",
    r"[0-9a-f]{8}([-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12}": "UID",
    r"/containers/helper/[0-9a-f]{8}": "/containers/helper/ID",  # of the file for the termination message
    r"\d+/(fs|work)\b": r"SNAPSHOT/\1",
    r"^\d+ \d+ \d+:\d+ ": "",  # a mount's number, its parent's, its device's
    r"\b(shared|master):\d+": r"\1",
}
_MOVING = ("State", "FDSize", "Threads", "Vm", "Rss", "Huge", "SigQ", "voluntary", "nonvoluntary", "Speculation")


def comparable(printed: str, name: str = "") -> dict[str, list[str]]:
    """What `SCRIPT` has printed, file by file, without what is another for each container. name: of the pod."""
    text = (printed.replace(name, "POD") if name else printed).replace("\0", "\n")
    for pattern, word in _IDS.items():
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    parts = re.split(r"^@@(\S+)\n", text, flags=re.MULTILINE)[1:]
    files = {file: content.splitlines() for file, content in zip(parts[::2], parts[1::2], strict=True)}
    return files | {"status": [line for line in files["status"] if not line.startswith(_MOVING)]}
