"""Addresses of files on servers: ``s3://`` and ``https://``. How GDAL reads them, how they are listed, and what may be told of them.

Every network setting of this package stands here. Credentials come from the usual ``AWS_*`` environment variables (or the profile that
``AWS_PROFILE`` names), are handed to GDAL and obstore, and enter no message, reference or store; queries of addresses (signatures) do
not either. Pixels are read by GDAL (``/vsis3/``, ``/vsicurl/``); metadata, listings and sizes by obstore and urllib.
"""

from __future__ import annotations

import configparser
import http.client
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dinodomain.errors import BadSource, require

EXTRA, WANTED_BY = "remote-sensing", "a source on a server"
SCHEMES = ("s3://", "https://", "http://")
UNKNOWN_SCHEMES = {
    "gs://": "list its files as https:// addresses (signed ones where it is private) in a text file: source=LIST.txt",
    "az://": "list its files as https:// addresses with their SAS signature in a text file: source=LIST.txt",
    "abfs://": "list its files as https:// addresses with their SAS signature in a text file: source=LIST.txt",
    "ftp://": "copy the files to a folder",
}

SIDE_FILES = (".msk", ".aux.xml", ".hdr", ".tfw", ".tifw", ".jgw", ".pgw", ".wld", ".j2w", ".prj")
"""Endings of masks, metadata and world files that GDAL reads beside a raster."""

TRIES = 5
"""Times that a read which GDAL gave up (a body cut short) is begun again, on top of GDAL's own retries of requests."""

GDAL: Mapping[str, str | int] = {
    # Nothing but the file itself is asked for; side files are read only where a listing shows that they exist (see ``environment``).
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_MAX_RETRY": "8",
    "GDAL_HTTP_RETRY_DELAY": "0.5",  # seconds, doubled with jitter at each retry: two minutes in all
    "GDAL_HTTP_RETRY_CODES": "408,429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": "15",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",  # a transfer that stands still this long is begun again; one that crawls is not
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1024",
    "GDAL_HTTP_TCP_KEEPALIVE": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",  # the directory of most COGs, with one request
    "CPL_VSIL_CURL_CHUNK_SIZE": "65536",
    "CPL_VSIL_CURL_CACHE_SIZE": "67108864",
    # A file that failed once, or changed, must not be remembered past its handle.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/",
    # Rows of 1024-pixel blocks of a whole swath stay decoded until the rows of chunks that share them are through.
    "GDAL_CACHEMAX": 512 * 2**20,
}
"""GDAL's settings for remote files. An environment variable of the same name wins."""

Got = TypeVar("Got")


class TryAgain(Exception):
    """A transfer failed in a way that may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """What a server says of a file without sending it.

    Attributes:
        size: Bytes.
        etag: The server's tag of this version; empty where it gives none.
    """

    size: int
    etag: str

    def prints(self) -> bytes:
        """What enters a digest."""
        return f"{self.size}\0{self.etag}".encode()


def is_remote(address: str) -> bool:
    """Whether GDAL has to fetch it."""
    return address.startswith(SCHEMES)


def shown(address: str) -> str:
    """The address as it may be shown and kept: no user, no password, no query."""
    if not is_remote(address):
        return address
    scheme, _, rest = address.partition("://")
    rest = rest if scheme == "s3" else re.split(r"[?#]", rest)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def name_of(address: str) -> str:
    """File name of a path or an address."""
    return shown(address).rstrip("/").rpartition("/")[2]


def parent_of(address: str) -> str:
    """Folder of a path or an address, without a slash at its end."""
    return shown(address).rstrip("/").rpartition("/")[0]


def gdal_name(address: str) -> str:
    """The name under which GDAL opens it."""
    if address.startswith("s3://"):
        return f"/vsis3/{address[5:]}"
    return f"/vsicurl/{address}" if is_remote(address) else address


def environment(address: str, *, sidecars: bool = False) -> AbstractContextManager[Any]:
    """GDAL's settings for an address, for a ``with`` block in the thread that reads; nothing for local files.

    Args:
        address: Path or address.
        sidecars: Whether masks or metadata lie beside the file in files of their own, which GDAL then looks for.
    """
    if not is_remote(address):
        return nullcontext()
    rasterio = require("rasterio", extra=EXTRA, wanted_by=WANTED_BY)
    options: dict[str, str | int] = {key: value for key, value in GDAL.items() if key not in os.environ}
    if sidecars:
        options["GDAL_DISABLE_READDIR_ON_OPEN"] = "TRUE"
        # Else every spelling of every side file that any driver knows is asked for, some thirty a raster.
        options["CPL_VSIL_CURL_ALLOWED_EXTENSIONS"] = ",".join((os.path.splitext(shown(address))[1], *SIDE_FILES))
    if "?" in address and not address.startswith("s3://"):
        options["CPL_VSIL_CURL_USE_HEAD"] = "NO"  # a signature holds for GET alone
    # An empty session: GDAL itself takes credentials from the environment, so that they pass through no object of ours.
    context: AbstractContextManager[Any] = rasterio.Env(session=rasterio.session.DummySession(), **options, **_gdal_s3(address))
    return context


def _gdal_s3(address: str) -> dict[str, str]:
    if not address.startswith("s3://"):
        return {}
    options = {}
    endpoint = _endpoint()
    if endpoint:
        parts = urlsplit(endpoint)
        options = {"AWS_S3_ENDPOINT": parts.netloc + parts.path.rstrip("/"), "AWS_HTTPS": "YES" if parts.scheme == "https" else "NO"}
    if _region() != os.environ.get("AWS_REGION"):
        options["AWS_REGION"] = _region()
    return options | {"AWS_VIRTUAL_HOSTING": "TRUE" if _virtual_host() else "FALSE", "AWS_NO_SIGN_REQUEST": "YES" if _unsigned() else "NO"}


def _endpoint() -> str | None:
    """``https://host[:port]`` of a server that is not Amazon's, under any of the names that tools know it by."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_S3_ENDPOINT", "AWS_ENDPOINT")
    text = next((os.environ[name] for name in names if os.environ.get(name)), None)
    if text is None or "://" in text:
        return text
    return f"{'http' if os.environ.get('AWS_HTTPS', 'YES').upper() in ('NO', 'FALSE', 'OFF', '0') else 'https'}://{text}"


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or _profile().get("region") or "us-east-1"


def _unsigned() -> bool:
    return os.environ.get("AWS_NO_SIGN_REQUEST", os.environ.get("AWS_SKIP_SIGNATURE", "")).upper() in ("YES", "TRUE", "ON", "1")


def _virtual_host() -> bool:
    """Whether the bucket is part of the host's name: at Amazon; elsewhere it is part of the path unless told."""
    told = os.environ.get("AWS_VIRTUAL_HOSTING")
    return _endpoint() is None if told is None else told.upper() in ("YES", "TRUE", "ON", "1")


def _profile() -> Mapping[str, str]:
    """Keys and region of the profile in the AWS files of this user, as far as they stand there in plain."""
    name = os.environ.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, default, section in (
        ("AWS_CONFIG_FILE", "~/.aws/config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials", name),
    ):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(Path(os.environ.get(variable, default)).expanduser())
        except configparser.Error:
            continue
        found |= dict(parser[section]) if parser.has_section(section) else {}
    return found


def _store(bucket: str) -> Any:
    store = require("obstore.store", extra=EXTRA, wanted_by=WANTED_BY)
    config: dict[str, Any] = {"region": _region(), "virtual_hosted_style_request": _virtual_host()}
    endpoint = _endpoint()
    if endpoint:
        parts = urlsplit(endpoint)
        config["endpoint"] = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}" if _virtual_host() else endpoint
    if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
        config["request_payer"] = True
    profile = _profile()
    if _unsigned():
        config["skip_signature"] = True
    elif "AWS_ACCESS_KEY_ID" not in os.environ and "aws_access_key_id" in profile:
        pairs = (("access_key_id", "aws_access_key_id"), ("secret_access_key", "aws_secret_access_key"), ("token", "aws_session_token"))
        config |= {ours: profile[theirs] for ours, theirs in pairs if theirs in profile}
    first = timedelta(seconds=delay())
    retry = {"max_retries": 8, "backoff": {"init_backoff": first, "max_backoff": first * 64, "base": 2.0}}
    client = {"allow_http": True, "connect_timeout": timedelta(seconds=15), "timeout": timedelta(minutes=5)}
    return store.S3Store(bucket, config=config, retry_config=retry, client_options=client)


def split_s3(address: str) -> tuple[str, str]:
    """``s3://bucket/a/b`` as (``bucket``, ``a/b``).

    Raises:
        BadSource: It names no bucket.
    """
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket:
        raise BadSource(address, "names no bucket", "write s3://BUCKET/PREFIX")
    return bucket, key


def listed(address: str) -> Iterator[tuple[str, Stat]]:
    """Objects below an ``s3://`` prefix: (address, what the listing says), sorted by key.

    Raises:
        BadSource: The bucket cannot be listed.
    """
    obstore = require("obstore", extra=EXTRA, wanted_by=WANTED_BY)
    bucket, key = split_s3(address)
    prefix = key.strip("/")

    def ask() -> list[Mapping[str, Any]]:
        return [entry for page in obstore.list(_store(bucket), prefix=prefix or None) for entry in page]

    for entry in sorted(_obstore(ask, address), key=lambda entry: str(entry["path"])):
        yield f"s3://{bucket}/{entry['path']}", Stat(size=int(entry["size"]), etag=str(entry["e_tag"] or ""))


def siblings(address: str) -> Iterator[tuple[str, Stat]]:
    """Objects in the folder of an ``s3://`` object, not below it."""
    obstore = require("obstore", extra=EXTRA, wanted_by=WANTED_BY)
    bucket, key = split_s3(address)

    def ask() -> list[Mapping[str, Any]]:
        return list(obstore.list_with_delimiter(_store(bucket), prefix=key.rpartition("/")[0] or None)["objects"])

    for entry in sorted(_obstore(ask, address), key=lambda entry: str(entry["path"])):
        yield f"s3://{bucket}/{entry['path']}", Stat(size=int(entry["size"]), etag=str(entry["e_tag"] or ""))


def stat(address: str) -> Stat:
    """Size and version tag of a remote file.

    Raises:
        BadSource: It is not there, or may not be read.
    """
    if address.startswith("s3://"):
        obstore = require("obstore", extra=EXTRA, wanted_by=WANTED_BY)
        bucket, key = split_s3(address)
        meta = _obstore(lambda: obstore.head(_store(bucket), key), address)
        return Stat(size=int(meta["size"]), etag=str(meta["e_tag"] or ""))
    # The first byte and not HEAD: signatures hold for one method.
    headers, body = _fetched(address, "bytes=0-0")
    total = headers.get("Content-Range", "").rpartition("/")[2]
    tag = headers.get("ETag") or headers.get("Last-Modified") or ""
    return Stat(size=int(total) if total.isdigit() else int(headers.get("Content-Length") or len(body)), etag=tag)


def read_bytes(address: str) -> bytes:
    """A whole small file, local or remote (metadata).

    Raises:
        BadSource: It is not there, or may not be read.
    """
    if address.startswith("s3://"):
        obstore = require("obstore", extra=EXTRA, wanted_by=WANTED_BY)
        bucket, key = split_s3(address)
        return _obstore(lambda: bytes(obstore.get(_store(bucket), key).bytes()), address)
    if is_remote(address):
        return _fetched(address)[1]
    try:
        return Path(address).read_bytes()
    except OSError as error:
        raise BadSource(address, f"cannot be read ({error.strerror})", "check the path and its permissions") from None


def _fetched(address: str, span: str | None = None) -> tuple[Mapping[str, str], bytes]:
    request = urllib.request.Request(address, headers={"Range": span} if span else {})

    def ask() -> tuple[Mapping[str, str], bytes]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                # A server without ranges sends everything: its headers say enough, so the body is left alone.
                return answer.headers, answer.read() if span is None or answer.status == 206 else b""
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (408, 429) or error.code >= 500:
                raise TryAgain(f"HTTP {error.code}") from None
            raise _refusal(address, error.code) from None
        except (http.client.HTTPException, OSError) as error:
            raise TryAgain(_words(error)) from None

    return retried(ask, address)


def _obstore(ask: Callable[[], Got], address: str) -> Got:
    """Runs a request of obstore; what a server says is turned into our words, for its answers may quote keys."""
    errors = require("obstore.exceptions", extra=EXTRA, wanted_by=WANTED_BY)

    def guarded() -> Got:
        try:
            return ask()
        except (errors.NotFoundError, FileNotFoundError):
            raise _refusal(address, 404) from None
        except errors.PermissionDeniedError:
            raise _refusal(address, 403) from None
        except errors.UnauthenticatedError:
            raise _refusal(address, 401) from None
        except errors.BaseError as error:
            text = str(error)
            code = re.search(r"status code: (40[134])", text)
            if code is not None:
                raise _refusal(address, int(code[1])) from None
            if re.search(r"status code: 301|PermanentRedirect|edirect without LOCATION", text):
                raise BadSource(shown(address), "its bucket lies in another region", "set AWS_REGION to it") from None
            if re.search(r"status code: 400|Bad Request", text):
                raise BadSource(shown(address), "the server does not accept it (400)", "check AWS_REGION and credentials") from None
            if re.search(r"ConnectionRefused|dns error", text):  # obstore has tried it eight times by now
                said = re.search(r'message: "([^"]+)"', text)
                reason = f"no connection to {_endpoint() or 'Amazon S3'} ({quiet(said[1]) if said else 'no answer'})"
                raise BadSource(
                    shown(address), reason, "check the network and AWS_ENDPOINT_URL, and run again: what is done is kept"
                ) from None
            raise TryAgain(_words(error)) from None

    return retried(guarded, address)


def retried(ask: Callable[[], Got], address: str) -> Got:
    """Calls until it answers, with growing pauses.

    Raises:
        BadSource: It failed ``TRIES`` times.
    """
    for turn in range(TRIES):
        try:
            return ask()
        except TryAgain as error:
            if turn == TRIES - 1:
                reason = f"the server did not answer in {TRIES} tries ({error})"
                raise BadSource(shown(address), reason, "check the network, and run again: what is done is kept") from None
            pause(turn)
    raise AssertionError("unreachable")


def pause(turn: int) -> None:
    """Waits before try ``turn + 1``: doubled each time, with jitter, as GDAL does."""
    time.sleep(delay() * 2.0**turn * random.uniform(0.75, 1.25))  # how long we wait decides nothing that is stored


def delay() -> float:
    """First pause before a request is tried again, seconds."""
    try:
        return float(os.environ.get("GDAL_HTTP_RETRY_DELAY") or GDAL["GDAL_HTTP_RETRY_DELAY"])
    except ValueError:
        return float(GDAL["GDAL_HTTP_RETRY_DELAY"])


def _refusal(address: str, code: int) -> BadSource:
    if code in (401, 403):
        remedy = (
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of somebody who may read it, or AWS_NO_SIGN_REQUEST=YES for a public bucket"
            if address.startswith("s3://")
            else "its signature may have run out; get a fresh address"
        )
        return BadSource(shown(address), f"the server refuses access ({code})", remedy)
    if code in (404, 410):
        return BadSource(shown(address), f"not on the server ({code})", "check the address; it may have been moved or deleted")
    return BadSource(shown(address), f"the server answers {code}", "check the address in a browser")


def cause(address: str) -> BadSource | None:
    """Why GDAL cannot open a remote file, if the server says that it is missing or forbidden; None if it can be read."""
    try:
        stat(address)
    except BadSource as refusal:
        return refusal
    return None


def quiet(text: str) -> str:
    """A message without queries, passwords and keys."""
    text = re.sub(r"((?:https?|s3)://)[^\s/'\"@]+@", r"\1", text)
    text = re.sub(r"(https?://[^\s?#'\"]+)[?#][^\s'\"]*", r"\1", text)
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        secret = os.environ.get(name, "")
        text = text.replace(secret, "...") if len(secret) > 3 else text
    return text


@contextmanager
def quietly() -> Iterator[None]:
    """A BadSource that leaves the block tells no query, password or key."""
    try:
        yield
    except BadSource as error:
        raise hushed(error) from None


def hushed(error: BadSource) -> BadSource:
    """The same refusal, with ``quiet`` words."""
    uri, reason, remedy = shown(error.uri), quiet(str(error.reason)), quiet(error.remedy or "")
    if (uri, reason, remedy) == (error.uri, error.reason, error.remedy or ""):
        return error
    clean = type(error).__new__(type(error))
    BadSource.__init__(clean, uri, reason, remedy, keys=error.keys)
    return clean


def _words(error: BaseException) -> str:
    lines = quiet(str(error)).splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]
