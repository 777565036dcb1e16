"""Talking to a DICOMweb server: credentials, rate, retries, and what went wrong in words. Knows no DICOM but multipart/related.

| environment | meaning |
|---|---|
| ``DINODOMAIN_DICOMWEB_TOKEN`` | bearer token |
| ``DINODOMAIN_DICOMWEB_USER``, ``DINODOMAIN_DICOMWEB_PASSWORD`` | basic authentication |
| ``DINODOMAIN_DICOMWEB_RATE`` | most requests per second, of all workers of one ingest on one machine together |
| ``HTTPS_PROXY``, ``REQUESTS_CA_BUNDLE`` ... | as ``requests`` reads them |

Credentials stay in the environment: no message, log, source or store holds them, nor the filters of a query, which may name patients.
Requests are repeated after 408, 429, 500, 502, 503, 504, broken connections, timeouts and cut answers, with growing pauses or as the
server asks (Retry-After); after 401, 403, 404 and a certificate that cannot be verified they are not.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import fcntl
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, final

from dinodomain.errors import UserError, require

CONNECT_SECONDS, READ_SECONDS = 10.0, 300.0
"""Timeouts: to be answered at all, and between two pieces of an answer (archives may have to fetch from tape)."""

ATTEMPTS = 6
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
LONGEST_ASKED = 600.0
"""Seconds: a server that asks for a longer pause than this is given up for now."""

_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_WANTED_BY = "source=dicomweb+https://..."
_MOST_PART_HEADER = 65536
_PREFIX = "DINODOMAIN_DICOMWEB_"
_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Refused(Exception):
    """The server does not give what was asked for; repeating the request is of no use.

    Attributes:
        problem: What happened, in words.
        remedy: What to do about it.
        status: HTTP status, 0 where there was none.
        everything: Whether any other request would fare alike.
    """

    def __init__(self, problem: str, remedy: str, *, status: int = 0, everything: bool = False) -> None:
        super().__init__(problem)
        self.problem, self.remedy, self.status, self.everything = problem, remedy, status, everything


class Cut(Exception):
    """An answer ended before its end."""


@final
class Server:
    """One DICOMweb service; each thread and each worker process makes its own.

    Args:
        url: Base address, without query.
        rate: Turns that it shares with others.

    Raises:
        UserError: The environment holds half a pair of credentials, or both kinds.
        MissingExtra: dicomweb-client is not installed.
    """

    def __init__(self, url: str, rate: Rate) -> None:
        self.url = url
        api = require("dicomweb_client.api", extra="medical", wanted_by=_WANTED_BY)
        self._errors = require("requests", extra="medical", wanted_by=_WANTED_BY).exceptions
        self._session = require("requests", extra="medical", wanted_by=_WANTED_BY).Session()
        self._session.auth = _Signer(_authorization(), rate)
        quiet_log = logging.getLogger("dicomweb_client")
        quiet_log.setLevel(max(quiet_log.level, logging.WARNING))  # it would log a line with UIDs for every request
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        self.client = api.DICOMwebClient(url, session=self._session, permissive_uid=True, timeout=timeout)
        self.client.set_http_retry_params(retry=False)  # it knows neither Retry-After nor broken connections

    def close(self) -> None:
        """Closes its connections."""
        self._session.close()

    def ask(self, request: Callable[[Any], Answer]) -> Answer:
        """Calls ``request(client)`` until it succeeds.

        Raises:
            Refused: It does not, for a reason that stays or after ``ATTEMPTS`` tries.
        """
        return self._again(lambda: request(self.client))

    def save_parts(self, path: str, folder: Path) -> list[Path]:
        """Gets DICOM files in the transfer syntax they are kept in, as they are, each into a file of ``folder``.

        Not by dicomweb-client: it holds whole parts in memory and takes the rest of a cut answer for its last part.

        Args:
            path: Of a series or instance, below the base address.
            folder: An empty folder; what an attempt that failed left in it is removed.

        Raises:
            Refused: As in ``ask``.
        """
        return self._again(lambda: self._save_parts(path, folder))

    def _save_parts(self, path: str, folder: Path) -> list[Path]:
        for left in folder.iterdir():
            left.unlink()
        headers = {"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'}
        timeout = (CONNECT_SECONDS, READ_SECONDS)
        with self._session.get(f"{self.url}/{path}", headers=headers, stream=True, timeout=timeout) as answer:
            answer.raise_for_status()
            kind = answer.headers.get("Content-Type", "")
            chunks = answer.iter_content(chunk_size=1 << 20)
            if kind.lower().startswith("multipart/"):
                return save_multipart(chunks, boundary_of(kind), folder)
            if kind.lower().startswith("application/dicom") and "json" not in kind and "xml" not in kind:  # some send a single file bare
                file = folder / "part-0"
                with file.open("wb") as handle:
                    handle.writelines(chunks)
                return [file]
        raise Refused(f"the server answered with {_kind(kind)} instead of DICOM files", "check that it offers WADO-RS at this address")

    def _again(self, work: Callable[[], Answer]) -> Answer:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return work()
            except self._errors.RequestException as error:
                pause = self._pause(error, attempt)
            except Cut as error:
                if attempt == ATTEMPTS:
                    remedy = "run again when the server or the network is well"
                    raise Refused(f"its answer was cut {ATTEMPTS} times", remedy) from error
                pause = _growing(attempt)
            _log.info("dicomweb: attempt %d failed, next in %.1f s", attempt, pause)
            time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _pause(self, error: Any, attempt: int) -> float:
        """Seconds until the next attempt.

        Raises:
            Refused: There is to be none.
        """
        response = getattr(error, "response", None)
        status = 0 if response is None else int(response.status_code)
        asked = 0.0 if response is None else retry_after(response.headers.get("Retry-After"))
        hopeless = self._hopeless(error, status)
        if hopeless is not None:
            raise hopeless from None  # its text holds the address with the query
        if asked > LONGEST_ASKED:
            raise Refused(f"the server asks to wait for {asked:.0f} s", "run again then", status=status, everything=True) from None
        if attempt == ATTEMPTS:
            raise self._given_up(error, response, status) from None
        return max(asked, _growing(attempt))

    def _hopeless(self, error: Any, status: int) -> Refused | None:
        errors = self._errors
        if isinstance(error, errors.SSLError):
            problem = "the server's certificate cannot be verified"
            remedy = "set REQUESTS_CA_BUNDLE=FILE to the certificate of your institution's authority"
            return Refused(problem, remedy, everything=True)
        if isinstance(error, errors.JSONDecodeError) and error.doc.lstrip()[:1] not in ("[", "{"):
            return Refused(
                "the server's answer is no DICOM JSON", "check that the address is that of a DICOMweb service, not of a login page"
            )
        if isinstance(error, errors.ProxyError):
            return Refused("the proxy cannot be used", "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY", everything=True)
        if isinstance(error, (errors.InvalidURL, errors.InvalidSchema, errors.MissingSchema, errors.TooManyRedirects)):
            return Refused(f"the address cannot be used ({type(error).__name__})", "check the address", everything=True)
        if status == 401:
            remedy = f"set {_PREFIX}TOKEN, or {_PREFIX}USER and {_PREFIX}PASSWORD, in the environment"
            return Refused("the server wants other credentials (HTTP 401)", remedy, status=401, everything=True)
        if status == 403:
            return Refused("the credentials may not read this (HTTP 403)", "ask the server's administrator for the right to", status=403)
        if status == 404:
            return Refused("not there (HTTP 404)", "check the address, or list the server again", status=404)
        if status and status not in _TRY_AGAIN:
            reason = _reason(error.response)
            return Refused(f"the server refuses the request (HTTP {status}{reason})", "check the address and its filters", status=status)
        return None

    def _given_up(self, error: Any, response: Any, status: int) -> Refused:
        if status:
            problem, gone = f"the server failed {ATTEMPTS} times (HTTP {status}{_reason(response)})", status in (429, 503)
        elif isinstance(error, self._errors.Timeout):
            problem, gone = f"the server did not answer in time, {ATTEMPTS} times", True
        elif isinstance(error, (self._errors.ChunkedEncodingError, self._errors.JSONDecodeError)):
            problem, gone = f"its answer was cut {ATTEMPTS} times", False
        else:
            problem, gone = f"the server cannot be reached ({type(error).__name__}, {ATTEMPTS} times)", True
        return Refused(problem, "run again when the server or the network is well", status=status, everything=gone)


def _reason(response: Any) -> str:
    text = "".join(letter for letter in str(response.reason or "") if letter.isalpha() or letter == " ")[:40].strip()
    return f" {text}" if text else ""


def _kind(content_type: str) -> str:
    return content_type.partition(";")[0].strip()[:60] or "nothing"


def _growing(attempt: int) -> float:
    return min(FIRST_PAUSE * 2.0 ** (attempt - 1), LONGEST_PAUSE)


def retry_after(value: str | None) -> float:
    """Seconds that a Retry-After header asks for (RFC 9110: a number, or a date), 0 where it says nothing of use."""
    if value is None:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        until = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    return max(until.timestamp() - time.time(), 0.0)


@final
class _Signer:
    """Signs each request and waits for its turn; requests calls it once per request, and never reads ``.netrc`` beside it."""

    def __init__(self, authorization: str | None, rate: Rate) -> None:
        self._authorization, self._rate = authorization, rate

    def __call__(self, request: Any) -> Any:
        if self._authorization is not None:
            request.headers["Authorization"] = self._authorization
        request.headers.pop("Host", None)  # dicomweb-client's lacks the port
        request.url = request.url.replace("%2A", "*")  # some servers (Orthanc) know a wildcard only as itself
        self._rate.wait()
        return request


def _authorization() -> str | None:
    token, user, password = (os.environ.get(_PREFIX + name) for name in ("TOKEN", "USER", "PASSWORD"))
    if token and user:
        raise UserError(f"{_PREFIX}TOKEN", f"is set, and {_PREFIX}USER too", remedy="unset one of the two")
    if bool(user) != bool(password):
        missing, there = ("PASSWORD", "USER") if user else ("USER", "PASSWORD")
        raise UserError(_PREFIX + missing, f"is not set, but {_PREFIX}{there} is", remedy="set both")
    if token:
        if not token.isascii() or any(letter.isspace() for letter in token.strip()):
            raise UserError(f"{_PREFIX}TOKEN", "holds blanks or letters that no token has", remedy="give the token alone, without 'Bearer'")
        return f"Bearer {token.strip()}"
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


def rate_wanted() -> float | None:
    """Most requests per second, or None.

    Raises:
        UserError: The environment states a rate that is none.
    """
    text = os.environ.get(_PREFIX + "RATE", "").strip()
    if not text:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(_PREFIX + "RATE", f"is {text!r}", allowed="requests per second, for example 5")
    return rate


@final
class Rate:
    """Turns at even distances, shared by all threads and processes of this machine that name the same folder.

    Args:
        per_second: Most turns per second; None means no limit.
        scratch: The folder; empty shares the turns of this object only.
    """

    def __init__(self, per_second: float | None, scratch: str) -> None:
        self._step = None if per_second is None else 1.0 / per_second
        self._file = Path(scratch) / "dicomweb-rate" if scratch else None
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Sleeps until it is our turn."""
        if self._step is None:
            return
        # The monotonic clock is one for all processes of a machine since its start.
        now = time.monotonic()
        turn = self._take(now, self._step)
        if turn > now:
            time.sleep(turn - now)

    def _take(self, now: float, step: float) -> float:
        if self._file is None:
            with self._lock:
                turn = max(now, self._next)
                self._next = turn + step
            return turn
        with self._file.open("a+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.seek(0)
            known = 0.0
            with contextlib.suppress(ValueError):  # empty, or of a writer that was killed
                known = float(handle.read())
            if known > now + 3600:  # of a machine that has started anew since
                known = 0.0
            turn = max(now, known)
            handle.seek(0)
            handle.truncate()
            handle.write(repr(turn + step))
            return turn


def boundary_of(content_type: str) -> bytes:
    """The boundary that a multipart Content-Type states.

    Raises:
        Refused: There is none.
    """
    for item in content_type.split(";")[1:]:
        name, _, value = item.strip().partition("=")
        if name.lower() == "boundary" and value.strip('"'):
            return value.strip('"').encode()
    raise Refused("the server's multipart answer states no boundary", "report it to the server's maker")


def save_multipart(chunks: Iterable[bytes], boundary: bytes, folder: Path) -> list[Path]:
    """Writes the parts of a multipart body (RFC 2046) to files, holding about one chunk in memory.

    Raises:
        Cut: The closing delimiter is missing.
        Refused: A part has no end of its header.
    """
    delimiter = b"\r\n--" + boundary
    data, files = bytearray(b"\r\n"), list[Path]()
    out: IO[bytes] | _Nowhere = _Nowhere()
    try:
        for chunk in chunks:
            data += chunk
            for done, rest in _split(data, delimiter):
                out.write(done)
                if rest == b"--":
                    return files
                if rest is not None:
                    out.close()
                    files.append(folder / f"part-{len(files)}")
                    out = files[-1].open("wb")
    finally:
        out.close()
    raise Cut


def _split(data: bytearray, delimiter: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """Takes from ``data`` what is certain: content up to a delimiter, with what follows it, or content alone (None)."""
    start = 0
    while (at := data.find(delimiter, start)) >= 0:
        after = at + len(delimiter)
        ahead = bytes(data[after : after + 2])
        if len(ahead) < 2:
            break
        if ahead == b"--":
            yield bytes(data[:at]), b"--"
            return
        if ahead[:1] not in b"\r \t":  # content that happens to look like it
            start = after
            continue
        end = data.find(b"\r\n\r\n", after)
        if end < 0:
            if len(data) - after > _MOST_PART_HEADER:
                raise Refused("a part of the server's answer has no end of its header", "report it to the server's maker")
            break
        content = bytes(data[:at])
        del data[: end + 4]
        start = 0
        yield content, b""
    certain = at if at >= 0 else max(len(data) - len(delimiter) - 2, 0)
    content = bytes(data[:certain])
    del data[:certain]
    yield content, None


class _Nowhere:
    """Where what stands before the first part goes."""

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None:
        """Nothing to close."""
