"""Whom to believe at the other end of an encrypted connection."""

from __future__ import annotations

import ssl


def trusting(ca_file: str | None) -> ssl.SSLContext:
    """A client's context that believes these authorities; None: OpenSSL's own.

    It judges as curl, git and Nix do. Python from 3.13 on also wants extensions (key usage, authority key identifier)
    that the certificates of many a private authority and of older clusters do not have.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
