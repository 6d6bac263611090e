"""`python -m tests.bed prepare [RELEASE...]` makes all ready; `python -m tests.bed sweep` removes stale boxes."""

import argparse

from tests.bed import cache, scope
from tests.bed.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bed")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="make this machine and the cache ready")
    preparing.add_argument("releases", nargs="*", metavar="RELEASE", help="further containerd releases, e.g. 2.3")
    commands.add_parser("sweep", help="remove boxes and daemons whose owners were killed")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(*arguments.releases)
        cache.say(f"ready in {cache.folder()}")
    else:
        for name in scope.sweep():
            cache.say(f"removed {name}")


main()
