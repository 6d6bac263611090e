"""Run a realisation in a network of its own, where every name that is asked for and every connection is written down.

Run as a program in a fresh network namespace, with a node's root and its fields as JSON. Inside are a loopback device,
a hub at 127.0.0.1, and a name server that answers every name with an address whose ports 80 and 443 we hold.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

from tests.bed import store
from tests.containerd.environments.store_node import StoreNode
from tests.doubles.hub import HubData, serve

URL = "http://hub.example.com:8080"
_TRAP = "127.0.0.99"
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


def main() -> None:
    """Arguments: root, fields of the node, the hub's folder, the policy, the environment."""
    root, fields, folder, policy, environment = sys.argv[1:]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    names: list[str] = []
    connections: list[int] = []
    threading.Thread(target=_answer_names, args=(names,), daemon=True).start()
    for port in (80, 443):
        threading.Thread(target=_take, args=(port, connections), daemon=True).start()
    node = StoreNode(Path(root), **json.loads(fields))
    (node.root / "etc/resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    with serve(HubData(Path(folder)), port=8080, cache=store.binary_cache().cache_dir) as hub:
        node.policy(f"{URL}/git", **json.loads(policy))
        reply = node.realise(environment)
        json.dump({"reply": reply, "names": names, "connections": connections, "asked": hub.requests}, sys.stdout)


def _answer_names(names: list[str]) -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    while True:
        question, client = server.recvfrom(512)
        end = question.index(b"\0", 12) + 5
        name, labels = [], question[12 : end - 5]
        while labels:
            name.append(labels[1 : 1 + labels[0]].decode())
            labels = labels[1 + labels[0] :]
        names.append(".".join(name))
        asks_for_a = question[end - 4 : end - 2] == b"\0\1"
        address = "127.0.0.1" if names[-1] == "hub.example.com" else _TRAP
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + socket.inet_aton(address) if asks_for_a else b""
        head = question[:2] + b"\x81\x80\0\1\0" + bytes([1 if asks_for_a else 0]) + b"\0\0\0\0"
        server.sendto(head + question[12:end] + answer, client)


def _take(port: int, connections: list[int]) -> None:
    server: Any = socket.create_server((_TRAP, port))
    while True:
        connection, _ = server.accept()
        connections.append(port)
        connection.close()


if __name__ == "__main__":
    main()
