"""`python -m tests.bed prepare|sweep|clean`: make all ready, remove stale boxes, remove the cache."""

import argparse

from tests.bed import cache, payload, scope
from tests.bed.prepare import clean, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bed")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="make this machine and the cache ready")
    preparing.add_argument("releases", nargs="*", metavar="RELEASE", help="further containerd releases, e.g. 2.3")
    commands.add_parser("sweep", help="remove boxes and daemons whose owners were killed")
    commands.add_parser("clean", help="remove the cache")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(*arguments.releases)
        payload.folder()  # not part of `prepare`: it follows this tree's sources, and tests that need it ask for it
        cache.say(f"ready in {cache.folder()}")
    elif arguments.command == "clean":
        clean()
    else:
        for name in scope.sweep():
            cache.say(f"removed {name}")


main()
