"""Objects on servers, whole or in part, through obstore: ``s3://``, ``gs://``, ``az://``, ``https://``.

Every network setting of stores stands here. Credentials come from the environment variables of each service (for S3 also from a profile
that holds keys), and enter no message. A request that meets 408, 429, 5xx, a reset or a body cut short is begun again with growing pauses:
obstore does that, but for refusals whose own body is cut short. What is given up becomes a ``UserError`` with the object and what the
server said. No pixels are known here.
"""

from __future__ import annotations

import configparser
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

from dinodomain.errors import UserError, require
from dinodomain.store.place import shown

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 20.0
RETRIES, OPENING_RETRIES = 12, 4
"""A training waits for its server two minutes and more; whoever mistypes an address is told within seconds."""

_EXTRA, _WANTED_BY = "cloud", "a store on a server"
_AGAIN = "open the store again; where nobody changed it on purpose, upload the object again"
_ADDRESS = "check it for blanks and odd characters, and so AWS_ENDPOINT_URL where that is set"
_YES = ("1", "true", "yes", "on")
_T = TypeVar("_T")


class Version(NamedTuple):
    """Which bytes an object held when it was opened.

    Attributes:
        size: Bytes.
        tag: The server's ETag, or the time of the last change where it gives none.
    """

    size: int
    tag: str


class _Refused(UserError):
    """The server tells that this user may not read an object."""


class Objects:
    """Reads objects of any bucket; safe in threads.

    Args:
        retries: Times that a request is begun again.
    """

    def __init__(self, retries: int = RETRIES) -> None:
        self._retries, self._lock = retries, threading.Lock()
        self._clients: dict[str, Any] = {}

    def whole(self, location: str) -> bytes:
        """All bytes of a small object.

        Raises:
            FileNotFoundError: There is none.
            UserError: It cannot be read.
        """
        return bytes(self._ask(location, "", lambda client, key: _obstore().get(client, key).bytes()))

    def whole_or_none(self, location: str, *, refused_is_missing: bool = False) -> bytes | None:
        """All bytes of a small object; None where there is none, or, if told so, where the server refuses it.

        Raises:
            UserError: It cannot be read.
        """
        try:
            return self.whole(location)
        except FileNotFoundError:
            return None
        except _Refused:
            if refused_is_missing:
                return None
            raise

    def tail(self, location: str, length: int) -> tuple[memoryview, Version]:
        """The last bytes of an object, with one request where the server allows it; fewer where it is shorter.

        Raises:
            FileNotFoundError: There is none.
            UserError: It cannot be read.
        """

        def ask(client: Any, key: str) -> tuple[memoryview, Version]:
            try:
                answer = _obstore().get(client, key, options={"range": {"suffix": length}})
            except _errors().NotSupportedError:  # Azure
                size = int(_obstore().head(client, key)["size"])
                answer = _obstore().get(client, key, options={"range": (max(0, size - length), max(1, size))})
            return memoryview(answer.bytes()), _version(answer)

        return self._ask(location, "its index", ask)

    def span(self, location: str, start: int, stop: int, version: Version, what: str) -> memoryview:
        """Bytes ``start`` to ``stop`` of the object that was opened, with one request.

        Raises:
            UserError: It cannot be read, or is another one by now; names ``what`` lies there.
        """
        options: dict[str, Any] = {"range": (start, stop)}
        if version.tag.startswith('"'):  # weak tags and times never match
            options["if_match"] = version.tag

        def ask(client: Any, key: str) -> tuple[Version, memoryview]:
            answer = _obstore().get(client, key, options=options)
            return _version(answer), memoryview(answer.bytes())

        try:
            found, data = self._ask(location, what, ask)
        except FileNotFoundError:
            raise _changed(location, what, "was removed") from None
        if found != version or data.nbytes != stop - start:
            raise _changed(location, what, "was replaced")
        return data

    def zarr_source(self, location: str) -> tuple[Any, str]:
        """The store and the path by which zarr-python opens an array."""
        from zarr.storage import ObjectStore  # only for arrays of other layouts

        client, key = self._client(location)
        return ObjectStore(client, read_only=True), key

    def _client(self, location: str) -> tuple[Any, str]:
        scheme, _, rest = location.partition("://")
        host, _, key = rest.partition("/")
        with self._lock:
            if f"{scheme}://{host}" not in self._clients:
                self._clients[f"{scheme}://{host}"] = _connect(scheme, host, self._retries)
            return self._clients[f"{scheme}://{host}"], unquote(key) if scheme.startswith("http") else key

    def _ask(self, location: str, what: str, ask: Callable[[Any, str], _T]) -> _T:
        errors, lead = _errors(), f"{what} cannot be read: " if what else ""
        for turn in itertools.count():
            try:
                return ask(*self._client(location))
            except (FileNotFoundError, errors.NotFoundError):
                raise FileNotFoundError(shown(location)) from None
            except errors.PreconditionError:
                raise _changed(location, what, "was replaced") from None
            except (errors.PermissionDeniedError, errors.UnauthenticatedError) as error:
                problem = f"{lead}the server refuses access ({_said(str(error))})"
                raise _Refused(shown(location), problem, remedy=_credentials(location)) from None
            except errors.BaseError as error:
                if turn >= self._retries or not _passing(str(error)):
                    raise _failed(location, lead, str(error)) from None
                time.sleep(min(FIRST_PAUSE_S * 2.0**turn, LONGEST_PAUSE_S))
            except BaseException as error:
                if type(error).__name__ != "PanicException":  # obstore's, at addresses that are none; it cannot be imported
                    raise
                raise UserError(shown(location), f"{lead}its address is not valid ({_said(str(error))})", remedy=_ADDRESS) from None
        raise AssertionError("unreachable")


def _passing(text: str) -> bool:
    """Whether a transfer broke in a way that obstore takes for an answer: the body of a refusal was cut short."""
    return "retries: 0," in text and "inner: Http(" in text and "kind: Interrupted" in text


def _obstore() -> Any:
    return require("obstore", extra=_EXTRA, wanted_by=_WANTED_BY)


def _errors() -> Any:
    return require("obstore.exceptions", extra=_EXTRA, wanted_by=_WANTED_BY)


def _version(answer: Any) -> Version:
    meta = answer.meta
    return Version(int(meta["size"]), str(meta["e_tag"] or meta["last_modified"]))


def _changed(location: str, what: str, how: str) -> UserError:
    return UserError(shown(location), f"{what} cannot be read: the object {how} while it was open", remedy=_AGAIN)


def _failed(location: str, lead: str, text: str) -> UserError:
    place = shown(location)
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return UserError(place, f"{lead}no credentials were found", remedy=_credentials(location))
    if "status code: 416" in text:
        return UserError(place, f"{lead}the object is shorter than it was", remedy=_AGAIN)
    if "status code: 301" in text or "PermanentRedirect" in text:
        return UserError(place, f"{lead}its bucket lies in another region ({_said(text)})", remedy="set AWS_REGION to it")
    if re.search("non-partial|NotPartial|Range request not supported", text):
        return UserError(place, f"{lead}the server does not serve parts of files (range requests)", remedy="use another server, or copy it")
    return UserError(place, f"{lead}the server did not answer as it should ({_said(text)})",
                     remedy="check the network, the address and the credentials, and run again: what is done is kept")  # fmt: skip


def _said(text: str) -> str:
    """What the server answered, or why it was not reached, in one line without keys."""
    status, code, message = (
        re.search(pattern, text) for pattern in (r"status code: (\d+ [\w ]+)", r"<Code>(.*?)</Code>", r"<Message>(.*?)</Message>")
    )
    causes = re.findall(r'message: \\?"([^"\\]+)', text) or re.findall(r"(dns error|IncompleteBody|TimedOut|timed out)", text)
    tried = re.search(r"after (\d+) retries", text)
    parts = [found[1] for found in (status, code, message) if found] or causes[-1:] or text.splitlines()[:1]
    return _quiet(": ".join(part.strip() for part in parts)[:240]) + (f", after {tried[1]} retries" if tried else "")


def _quiet(text: str) -> str:
    """A message without passwords, queries and keys."""
    text = re.sub(r"((?:https?|s3)://)[^\s/'\"@]+@", r"\1", text)
    text = re.sub(r"(https?://[^\s?#'\"]+)[?#][^\s'\"]*", r"\1", text)
    for name, secret in os.environ.items():
        if len(secret) > 3 and name.startswith(("AWS_", "GOOGLE_", "AZURE_")) and re.search("KEY|SECRET|TOKEN|PASSWORD|SAS", name):
            text = text.replace(secret, "...")
    return text


def _credentials(location: str) -> str:
    if location.startswith("s3"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of somebody who may read it, or AWS_SKIP_SIGNATURE=true for a public bucket"
    if location.startswith("gs"):
        return "set GOOGLE_APPLICATION_CREDENTIALS to the key file of somebody who may read it, or GOOGLE_SKIP_SIGNATURE=true"
    if location.startswith("az"):
        return "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or AZURE_SKIP_SIGNATURE=true"
    return "ask who runs the server"


def _connect(scheme: str, host: str, retries: int) -> Any:
    stores = require("obstore.store", extra=_EXTRA, wanted_by=_WANTED_BY)
    first, longest = timedelta(seconds=FIRST_PAUSE_S), timedelta(seconds=LONGEST_PAUSE_S)
    retry = {
        "max_retries": retries,
        "backoff": {"init_backoff": first, "max_backoff": longest, "base": 2.0},
        "retry_timeout": timedelta(minutes=10),
    }
    client: dict[str, Any] = {"connect_timeout": timedelta(seconds=15), "timeout": timedelta(minutes=2)}
    try:
        if scheme == "s3":
            config = _s3()
            client |= {"allow_http": True} if _endpoint().startswith("http://") else {}
            return stores.S3Store(host, config=config, retry_config=retry, client_options=client)
        if scheme in ("gs", "az"):
            kind = stores.GCSStore if scheme == "gs" else stores.AzureStore
            return kind(host, retry_config=retry, client_options=client)
        return stores.HTTPStore.from_url(
            f"{scheme}://{host}", retry_config=retry, client_options={**client, "allow_http": scheme == "http"}
        )
    except ValueError as error:
        raise UserError(shown(f"{scheme}://{host}"), f"its address is not valid ({_said(str(error))})", remedy=_ADDRESS) from None
    except _errors().BaseError as error:
        raise UserError(f"{scheme}://{host}", f"cannot be used ({_said(str(error))})", remedy=_credentials(scheme)) from None


def _endpoint() -> str:
    """Where S3 is, if not at its usual place.

    Raises:
        UserError: It is no address, at which obstore panics.
    """
    name = next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if os.environ.get(name)), "")
    endpoint = os.environ.get(name, "")
    if endpoint and not re.match(r"https?://[^/\s]", endpoint):
        raise UserError(name, f"{_quiet(endpoint)!r} is no address", allowed="https://HOST or http://HOST:PORT")
    return endpoint


def _s3() -> dict[str, Any]:
    """What obstore does not take from the environment itself: names that other tools use, and profiles."""
    config: dict[str, Any] = {}
    if os.environ.get("AWS_ENDPOINT_URL_S3"):
        config["endpoint"] = os.environ["AWS_ENDPOINT_URL_S3"]
    if os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester":
        config["request_payer"] = True
    profile = _profile()
    if not (os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")) and "region" in profile:
        config["region"] = profile["region"]
    if any(os.environ.get(name, "").lower() in _YES for name in ("AWS_NO_SIGN_REQUEST", "AWS_SKIP_SIGNATURE")):
        config["skip_signature"] = True
    elif "AWS_ACCESS_KEY_ID" not in os.environ:
        config |= _profile_keys(profile)
    return config


def _profile_keys(profile: Mapping[str, str]) -> dict[str, str]:
    """Keys that stand in a profile.

    Raises:
        UserError: The profile that the user names gets its keys in a way that obstore does not know.
    """
    pairs = (("access_key_id", "aws_access_key_id"), ("secret_access_key", "aws_secret_access_key"), ("token", "aws_session_token"))
    keys = {ours: profile[theirs] for ours, theirs in pairs if theirs in profile}
    name = os.environ.get("AWS_PROFILE")
    if name and not keys:
        raise UserError(
            "AWS_PROFILE", f"{name!r} holds no keys", remedy=f'eval "$(aws configure export-credentials --profile {name} --format env)"'
        )
    return keys


def _profile() -> Mapping[str, str]:
    """Keys and region of the user's profile in the AWS files, as far as they stand there in plain."""
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
