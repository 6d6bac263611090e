"""The pure model of containerd's configuration: which version reads what, what is in force, one table edited.

Files come in as bytes or through a `Reader`, results go out as bytes and values. It knows no host and no daemon and is
usable alone; an import contract in `pyproject.toml` holds that.
"""
