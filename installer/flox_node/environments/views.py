"""Views: folders of hard links into the store, which the containers of releases before see as /nix.

Containers made since then have their store paths mounted one by one, and nothing on the disk.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from flox_node.environments.paths import Paths


def sweep(paths: Paths) -> list[str]:
    """Remove the views that no running pod was given; their names."""
    try:
        names = sorted(os.listdir(paths.views))
    except FileNotFoundError:
        return []
    used = _used(paths)
    if used is None:
        return []
    from flox_node.host.trees import remove_tree

    gone = [name for name in names if name not in used]
    for name in gone:
        remove_tree(Path(paths.views, name))
    if not used:
        os.rmdir(paths.views)
    return gone


def _used(paths: Paths) -> set[str] | None:
    """The views that the records of sandboxes name; None where one of them cannot be read."""
    try:
        records = [name for name in os.listdir(paths.pods) if name.endswith(".json")]
    except FileNotFoundError:
        return set()
    found = set()
    for name in records:
        try:
            with open(f"{paths.pods}/{name}", "rb") as file:
                resolution = json.loads(file.read())["resolution"]
            found.add(str(resolution.get("view", "")).rpartition("/")[2])
        except FileNotFoundError:
            continue  # its pod ended just now
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
    return found - {""}
