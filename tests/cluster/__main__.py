"""`python -m tests.cluster build|up|down|kubectl|pin`: build the programs, start a cluster, remove it, talk to it."""

import argparse
import os
import sys

from tests.bed import cache
from tests.bed.prepare import prepare
from tests.cluster import background, binaries, pin


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster")
    parser.add_argument("--name", default="cluster", help="for more than one cluster at a time")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="have the programs of the release ready")
    commands.add_parser("up", help="start a cluster that goes on running; one that runs is kept")
    commands.add_parser("down", help="remove it and everything it had")
    commands.add_parser("hold", help="what `up` leaves running: the cluster's owner")
    pinning = commands.add_parser("pin", help="pin a further Kubernetes release under tests/tools")
    pinning.add_argument("release", help="e.g. 1.33.13")
    kubectl = commands.add_parser("kubectl", help="run kubectl against it", add_help=False)
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command == "build":
        prepare()
        binaries.build(binaries.release())
    elif arguments.command == "up":
        prepare()
        binaries.build(binaries.release())
        state = background.up(arguments.name)
        print(f"Kubernetes {state['kubernetes']}: its nodes were Ready after {state['ready_seconds']:.1f} s.")
        print(f"kubectl: {state['kubectl']}")
    elif arguments.command == "down":
        background.down(arguments.name)
    elif arguments.command == "pin":
        print(pin.pin(arguments.release))
    elif arguments.command == "hold":
        background.hold(arguments.name)
    else:
        running = background.running(arguments.name)
        if running is None:
            cache.say(f"{arguments.name} does not run; `make cluster` starts it")
            return 1
        os.execv(running["kubectl"], [running["kubectl"], *arguments.arguments])
    return 0


sys.exit(main())
