"""Several stores as one, by weight: a small YAML file that names them.

    stores:
      - {path: chest_2019, share: 0.7}          # relative to this file
      - {path: s3://bucket/chest_2023, share: 0.3}
    distinct_units: true                        # only where stores of a personal domain do not share a secret

A mix is read like any store: its tables are those of its stores one after the other, with locations in place of paths. Shares are of all
samples drawn; they need not sum to 1. Nothing is copied or written. What each store is made of stays in its own lineage.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from dinodomain.errors import Problems, UserError
from dinodomain.lineage import Lineage, digest
from dinodomain.store.closure import Held, close, own_held
from dinodomain.store.format import CHUNKS, FORMAT, INDEX
from dinodomain.store.place import below, is_mix, is_remote, location_of, shown
from dinodomain.store.read import Store, open_store

_SHAPE = "stores: [{path: A, share: 0.7}, {path: B, share: 0.3}]"
_LISTED = 5

Json = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a mix file says.

    Attributes:
        locations: Of the stores, absolute paths or URLs.
        shares: Of all samples, one per store; they sum to 1.
        distinct_units: The user vouches that no person is in two of the stores.
    """

    locations: tuple[str, ...]
    shares: tuple[float, ...]
    distinct_units: bool = False


def read_mix(path: str | Path) -> Mix:
    """Reads and checks a mix file, without opening a store.

    Raises:
        UserError: It cannot be read.
        Problems: Everything that is wrong in it, at once.
    """
    file = Path(path)
    body = _body(file)
    problems = [_unknown(f"{file}: {key}", key, ("stores", "distinct_units")) for key in body if key not in ("stores", "distinct_units")]
    entries = body.get("stores")
    if not isinstance(entries, list) or not entries:
        found = "is missing" if entries is None else f"is {entries!r}"
        raise Problems([*problems, UserError(f"{file}: stores", found, allowed=f"a list of stores, {_SHAPE}")])
    distinct = body.get("distinct_units", False)
    if not isinstance(distinct, bool):
        problems.append(UserError(f"{file}: distinct_units", f"is {distinct!r}", allowed="true or false"))
    found_entries = [_entry(file, number, entry, problems) for number, entry in enumerate(entries)]
    locations, shares = tuple(location for location, _ in found_entries), [share for _, share in found_entries]
    problems += _named_twice(file, locations)
    if problems:
        raise Problems(problems)
    return Mix(locations=locations, shares=tuple(share / math.fsum(shares) for share in shares), distinct_units=distinct)


def _named_twice(file: Path, locations: Sequence[str]) -> list[UserError]:
    remedy = "name it once, with the sum of the shares"
    firsts = [locations.index(location) for location in locations]
    return [
        UserError(f"{file}: stores[{number}].path", f"{shown(location)!r} is also stores[{first}]", remedy=remedy)
        for number, (location, first) in enumerate(zip(locations, firsts))
        if location and first < number
    ]


def _body(file: Path) -> dict[str, Any]:
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(str(file), f"cannot be read: {error.strerror}", allowed="a store, or a YAML file that lists stores") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(str(file), f"is not YAML ({' '.join(str(error).split())})", allowed=_SHAPE) from None
    if not isinstance(body, Mapping):
        raise UserError(str(file), "lists no stores", allowed=_SHAPE)
    return {str(key): value for key, value in body.items()}


def _unknown(place: str, key: str, known: Sequence[str]) -> UserError:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return UserError(place, "unknown key", remedy=f"did you mean {near[0]!r}?")
    return UserError(place, "unknown key", allowed=", ".join(known))


def _entry(file: Path, number: int, entry: Any, problems: list[UserError]) -> tuple[str, float]:
    """Location and share of one entry; notes what is wrong with it."""
    place = f"{file}: stores[{number}]"
    if not isinstance(entry, Mapping):
        problems.append(UserError(place, f"is {entry!r}", allowed="{path: FOLDER_OR_URL, share: NUMBER}"))
        return "", 1.0
    problems += [_unknown(f"{place}.{key}", str(key), ("path", "share")) for key in entry if key not in ("path", "share")]
    return _location(file, f"{place}.path", entry.get("path"), problems), _share(f"{place}.share", entry.get("share"), problems)


def _location(file: Path, place: str, path: Any, problems: list[UserError]) -> str:
    if not isinstance(path, str) or not path.strip():
        found = "is missing" if path is None else f"is {path!r}"
        problems.append(UserError(place, found, allowed="the folder or URL of a store; relative to this file"))
        return ""
    try:
        return location_of(path if is_remote(path) else str(file.absolute().parent / Path(path).expanduser()))
    except UserError as error:
        problems.append(UserError(place, str(error)))
        return ""


def _share(place: str, share: Any, problems: list[UserError]) -> float:
    if isinstance(share, (int, float)) and not isinstance(share, bool) and math.isfinite(share) and share > 0:
        return float(share)
    found = "is missing" if share is None else f"is {share!r}"
    problems.append(UserError(place, found, allowed="a finite number above 0; shares need not sum to 1"))
    return 1.0


def open_mix(path: str | Path) -> Store:
    """Opens the stores of a mix file as one store.

    A unit that any of them holds out is held out in all, see ``closure``. The digest covers stores and shares.

    Args:
        path: The mix file.

    Raises:
        Problems: What is wrong with the file, or with its stores together: different domains, a source in two of them, people whom
            nobody can tell apart.
    """
    mix = read_mix(path)
    stores = _opened(Path(path), mix)
    problems = _mismatches(Path(path), mix, stores)
    if problems:
        raise Problems(problems)
    return _joined(location_of(path), mix, stores)


def _opened(file: Path, mix: Mix) -> list[Store]:
    stores: list[Store] = []
    problems: list[UserError] = []
    for number, location in enumerate(mix.locations):
        place = f"{file}: stores[{number}].path"
        if is_mix(location):
            problems.append(UserError(place, f"{location} is a mix itself", remedy="list its stores here, with their shares"))
            continue
        try:
            stores.append(open_store(location))
        except UserError as error:
            problems.append(UserError(place, str(error)))
    if problems:
        raise Problems(problems)
    return stores


def _mismatches(file: Path, mix: Mix, stores: Sequence[Store]) -> list[UserError]:
    """What keeps the stores from being mixed."""
    problems: list[UserError] = []
    for what, remedy in (("domain", "mix stores of one domain"), ("ndim", "mix images with images and volumes with volumes")):
        found = [str(getattr(store, what)) for store in stores]
        if len(set(found)) > 1:
            named = ", ".join(f"{shown(location)}: {value}" for location, value in zip(mix.locations, found))
            problems.append(UserError(f"{file}: stores", f"are of different {what} ({named})", remedy=remedy))
    if not problems:
        problems += _repeated(file, mix, stores) + _strangers(file, mix, stores)
    return problems


def _repeated(file: Path, mix: Mix, stores: Sequence[Store]) -> list[UserError]:
    """Sources of equal content in two stores: they would be drawn more often than stated, and split apart where units are told apart."""
    owner: dict[str, int] = {}
    twice: dict[tuple[int, int], list[str]] = {}
    for number, store in enumerate(stores):
        names = store.column("source_id")
        for row, content in enumerate(store.column("content_hash").tolist()):
            first = owner.setdefault(content, number)
            if first != number:
                twice.setdefault((first, number), []).append(str(names[row]))
    problems = []
    for (first, second), found in sorted(twice.items()):
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        listed = ", ".join(found[:_LISTED]) + more
        problem = f"hold {len(found)} sources of equal pixels: {listed} (ids of {shown(mix.locations[second])})"
        remedy = "take them out of one store (dinodomain ingest store=... withdraw=CSV), or ingest it without them"
        problems.append(UserError(f"{file}: stores[{first}] and stores[{second}]", problem, remedy=remedy))
    return problems


def _strangers(file: Path, mix: Mix, stores: Sequence[Store]) -> list[UserError]:
    """Stores of a personal domain with secrets of their own: nobody can tell whether a person is in two of them."""
    secrets = {store.manifest.get("secret_fingerprint") for store in stores}
    personal = any(store.manifest.get("personal", False) for store in stores)
    if mix.distinct_units or not personal or (len(secrets) == 1 and None not in secrets):
        return []
    problem = "have different secrets, so a person in two of them has two names: held out in one, trained on in the other"
    remedy = "ingest them with one ingest.secret=FILE, or write `distinct_units: true` into this file if no person is in two of them"
    return [UserError(f"{file}: stores", problem, remedy=remedy)]


def _joined(location: str, mix: Mix, stores: Sequence[Store]) -> Store:
    held = close(stores)
    index = pa.concat_tables([_index(*one) for one in zip(stores, held)], promote_options="default").combine_chunks()
    firsts = np.cumsum([0, *map(len, stores)])
    chunks = pa.concat_tables([_chunks(*one) for one in zip(stores, held, firsts.tolist())]).combine_chunks()
    member = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    shares = [[store.digest, round(share, 12)] for store, share in zip(stores, mix.shares)]
    manifest = {
        "format": FORMAT,
        "domain": stores[0].domain,
        "ndim": stores[0].ndim,
        "personal": any(store.manifest.get("personal", False) for store in stores),
        "digests": {name: digest([name, shares]) for name in (INDEX, CHUNKS)},
    }
    joined = Store(location, manifest, index, chunks, _lineage(mix, stores, index, held), member=member, shares=mix.shares)
    for store in stores:
        if not is_remote(store.location):
            joined.arrays.watch(store.location, store.manifest)
    return joined


def _index(store: Store, held: Held) -> pa.Table:
    """The index of a store with locations for paths."""
    places = pa.array([below(store.location, path) for path in store.index["array"].to_pylist()], pa.string())
    return _with(_with(store.index, "array", places), "holdout", pa.array(held.sources))


def _chunks(store: Store, held: Held, first: int) -> pa.Table:
    rows = pa.array(store.chunks["row"].to_numpy() + np.int32(first), pa.int32())
    return _with(_with(store.chunks, "row", rows), "holdout", pa.array(held.chunks))


def _with(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def _lineage(mix: Mix, stores: Sequence[Store], index: pa.Table, held: Sequence[Held]) -> dict[str, Json]:
    """The record of the mix: every store's digest, share, own record, and how many chunks only the others hold out; no paths."""
    named = [
        {"store": store.digest, "share": share, "held_by_others": int(flags.chunks.sum()) - own_held(store)}
        for store, share, flags in zip(stores, mix.shares, held)
    ]
    units = {unit for store in stores for unit in store.chunks["unit"].unique().to_pylist()}
    held_out = sum(int(flags.sources.sum()) for flags in held)
    counts = {"sources": index.num_rows, "units": len(units), "held_out_sources": held_out}
    plan = {"stores": named, "distinct_units": mix.distinct_units}
    parents = {f"store_{number}": store.digest for number, store in enumerate(stores)}
    return Lineage(kind="mix", parents=parents, plan=plan, counts=counts, history=tuple(store.lineage for store in stores)).as_json()
