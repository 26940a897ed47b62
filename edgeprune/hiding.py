"""Passwords in what is shown, logged or raised: the URLs that hold them, without them."""

from __future__ import annotations

import re

HIDDEN = "***"


def hidden(text: str) -> str:
    """The text without the passwords of the URLs in it.

    >>> hidden("postgresql+psycopg://anna:geheim@db/studies?sslpassword=auch")
    'postgresql+psycopg://anna:***@db/studies?sslpassword=***'
    """
    text = re.sub(r"(\w[\w+.-]*://[^\s:/@]*):\S*@", rf"\1:{HIDDEN}@", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:pass|pwd|secret|token)[^=&\s]*)=[^&\s]*", rf"\1={HIDDEN}", text)
