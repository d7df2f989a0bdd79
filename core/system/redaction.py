"""No password leaves the process: not in a saved result, a report, a message or a traceback."""

from __future__ import annotations

import re

HIDDEN = "***"

_SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]*://"
# A password may itself hold '@' or ':' unescaped: all up to the last '@' before a blank or a quote
# is hidden.
_CREDENTIALS = re.compile(rf"({_SCHEME}[^\s:/@?#'\"]*):[^\s'\"]*@")
_SECRET = r"[\w\-]*(?:password|passwd|passphrase|pwd|secret|token|api_?key)[\w\-]*"
_IN_QUERY = re.compile(rf"(?i)([?&]{_SECRET}=)[^\s&'\"]+")
# The form in which drivers of databases repeat what they were given.
_AS_SETTING = re.compile(rf"(?i)\b({_SECRET} ?= ?)('[^']*'|[^\s&;,'\")\]]+)")
SHORTEST = 4
"""A shorter password by itself would blacken every word that holds it."""


def redacted(text: object, url: str = "") -> str:
    """Return a text without the passwords in it.

    Args:
        text: Anything; its text form is taken. Passwords of every URL in it are hidden.
        url: A location whose password is looked for in the text by itself, too.
    """
    shown = str(text)
    for secret in _secrets(url) if url else ():
        shown = shown.replace(secret, HIDDEN)
    shown = _CREDENTIALS.sub(rf"\1:{HIDDEN}@", shown)
    shown = _IN_QUERY.sub(rf"\1{HIDDEN}", shown)
    return _AS_SETTING.sub(rf"\1{HIDDEN}", shown) if url else shown


def _secrets(url: str) -> list[str]:
    """Return the passwords of a database URL: as written, and as drivers see them.

    The longest comes first, for it may hold a shorter one.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return []
    written = re.search(r"://[^:/@]*:([^@]*)@", url)
    found = {str(parsed.password or "")}
    if written:
        found.add(written.group(1))
    for key, values in parsed.query.items():
        if re.fullmatch(f"(?i){_SECRET}", key):
            found.update([values] if isinstance(values, str) else values)
    long_enough = [secret for secret in found if len(secret) >= SHORTEST]
    return sorted(long_enough, key=len, reverse=True)
