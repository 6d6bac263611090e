"""An image that stands in for flox-node's where only the API server's side is looked at: its pods start and are ready.

It does nothing on a node; what the agent would tell about nodes, the test says itself.
"""

from pathlib import Path

from tests.bed.images import PATH, busybox_layer, layer, write_archive

IMAGE = "flox.test/agent:1"
NEWER = "flox.test/agent:2"
_AGENT = """#!/bin/sh
echo "$1 $2: standing in"
[ "$1" = node ] && port=9580 || port=9581
mkdir "/exchange/$1/www" && cd "/exchange/$1/www" && touch healthz readyz && busybox httpd -p $port
trap "exit 0" TERM
while true; do sleep 0.2; done
"""


def archives(folder: Path) -> list[Path]:
    """The image under both names."""
    layers = [busybox_layer(), layer({"bin/flox-node-agent": (_AGENT.encode(), 0o755)})]
    config = {"Env": [PATH], "Entrypoint": ["/bin/flox-node-agent"]}
    made = []
    for name in (IMAGE, NEWER):
        made.append(folder / f"agent-{name[-1]}.tar")
        write_archive(made[-1], name, layers, config)
    return made
