"""The bed at the shell: make all ready, remove what is stale or the cache, build the image, name the Go."""

import argparse

from tests.bed import cache, golang, image, payload, scope
from tests.bed.prepare import clean, prepare


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bed")
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare", help="make this machine and the cache ready")
    preparing.add_argument("releases", nargs="*", metavar="RELEASE", help="further containerd releases, e.g. 2.3")
    commands.add_parser("sweep", help="remove boxes and daemons whose owners were killed")
    commands.add_parser("clean", help="remove the cache")
    commands.add_parser("image", help="build the image of the tests and name its archive")
    commands.add_parser("go", help="print the Go command that the bed builds with")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(*arguments.releases)
        payload.folder()  # not part of `prepare`: it follows this tree's sources, and tests that need it ask for it
        cache.say(f"ready in {cache.folder()}")
    elif arguments.command == "clean":
        clean()
    elif arguments.command == "image":
        prepare()
        cache.say(f"{image.REFERENCE} is in {image.archive()}")
    elif arguments.command == "go":
        print(golang.go())
    else:
        for name in scope.sweep():
            cache.say(f"removed {name}")


main()
