"""Where things lie: a location is an absolute path or a URL. Names only: nothing is opened here.

A value in the index is below its store unless it is itself a location, so one table may speak of several stores.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dinodomain.errors import UserError

SCHEMES = ("s3", "gs", "az", "https", "http")
_ALLOWED = "a folder, or s3://BUCKET/KEY, gs://BUCKET/KEY, az://CONTAINER/KEY, https://HOST/PATH"
_HALVED = re.compile(rf"^({'|'.join(SCHEMES)}):/[^/]")


def is_mix(given: str | Path) -> bool:
    """Whether a user means a YAML file that lists stores (``mix.py``), and not a store."""
    return not is_remote(str(given)) and Path(given).suffix.lower() in (".yaml", ".yml") and not os.path.isdir(given)


def is_remote(location: str) -> bool:
    """Whether a location is a URL."""
    return "://" in location


def location_of(given: str | Path) -> str:
    """The absolute path or the URL that a user means; a ``file://`` URL is a path.

    Raises:
        UserError: No such server is known, or the URL carries a password or a query.
    """
    text = str(given)
    if not is_remote(text):
        if _HALVED.match(text) and not os.path.exists(text):  # what pathlib makes of a URL
            raise UserError(text, "is a URL that has lost a slash", allowed=_ALLOWED, remedy="give it as a string, not as a pathlib.Path")
        return os.path.abspath(text)
    parts = urlsplit(text)
    if parts.scheme == "file":
        return os.path.abspath(unquote(parts.path))
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise UserError(shown(text), "is no address that can be read", allowed=_ALLOWED)
    if "@" in parts.netloc:
        raise UserError(shown(text), "carries a user or a password, which would be kept in records of runs",
                        remedy="take it out and use the environment variables of that service")  # fmt: skip
    if parts.scheme in ("http", "https") and (parts.query or parts.fragment):
        raise UserError(shown(text), "carries a query, which holds for one file and would be kept in records of runs",
                        remedy="use s3://, gs:// or az:// with the environment variables of that service")  # fmt: skip
    return text.rstrip("/")


def below(root: str, value: str) -> str:
    """The location that an index names: ``value`` below ``root``, or ``value`` itself where it is a location."""
    return value if is_remote(value) or value.startswith("/") else f"{root}/{value}"


def shown(location: str) -> str:
    """The location as it may be shown and kept: no user, no password, no query."""
    if not is_remote(location):
        return location
    scheme, _, rest = location.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{re.split(r'[?#]', path)[0] if scheme.startswith('http') else path}"
