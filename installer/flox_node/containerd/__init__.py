"""containerd: its configuration (which version reads what, what is in force, one table edited) and its running daemon.

The configuration side is pure: files come in as bytes or through a `Reader`, results go out as bytes and values.
"""
