"""The command line: verb and ``key=value`` words -> one strict plan -> one call. The only file that imports Hydra.

Hydra composes YAML and parses values; it never runs the program (``hydra.main`` exits 1 on a bad key and writes folders of its
own). Values of path-typed keys never reach its grammar, so any file name may be typed as it is.

Exit codes: 0 done; 1 an audit gate failed; 2 the user's input is wrong; 3 anything else; 4 a gate could not be decided; 130 interrupted.
"""

from __future__ import annotations

import difflib
import errno
import itertools
import json
import logging
import os
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dinodomain
from dinodomain import config
from dinodomain.errors import UserError
from dinodomain.lineage import to_json
from dinodomain.verbs import VERBS, Outcome, Verb

PATH_KEYS = frozenset({
    "source", "store", "out", "labels", "metadata", "checkpoint", "features", "gate", "report", "run", "config", "configs_dir",
    "secret", "crosswalk", "withdraw", "ingest.executor", "ingest.metadata", "ingest.secret", "ingest.patient_map", "ingest.select",
    "ingest.aoi", "loader.ring_dir", "start.weights", "watch.labels", "gram.teacher", "verify", "against", "audit", "waive_audit",
    "audit.previous", "audit.finetuned", "audit.generic", "audit.declaration", "audit.sign", "audit.key", "audit.unit",
})  # fmt: skip
"""Keys whose value is taken letter for letter: paths, and expressions of their own grammar."""

DISK_ERRORS = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
})  # fmt: skip
"""What a disk says when the user chose a place that cannot be written."""


@dataclass(frozen=True, slots=True)
class Words:
    """A command line taken apart.

    Attributes:
        paths: Path-typed keys with their values, letter for letter.
        overrides: All other ``key=value`` words, for Hydra's parser.
        flags: Words that start with two dashes.
    """

    paths: Mapping[str, str]
    overrides: tuple[str, ...]
    flags: frozenset[str]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with _logging():
            code = _run(words)
            sys.stdout.flush()  # here, where a closed pipe is noticed
            return code
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read (head, less) has seen enough; the interpreter's own flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            traceback.print_exc()
            return 3
        print(f"{error.filename or 'output'}: {error.strerror}; choose another folder, or free some space", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        print("this is a bug in dinodomain: please report it with the lines above", file=sys.stderr)
        return 3


@contextmanager
def _logging() -> Iterator[None]:
    """What the rooms log goes to standard error as plain lines; standard output is for results."""
    logger, handler = logging.getLogger("dinodomain"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(dinodomain.__version__)
        return 0
    verb = find_verb(words[0])
    taken = split_words(words[1:])
    if "--help" in taken.flags:
        print(help_text(verb))
        return 0
    if "--multirun" in taken.flags:
        return multirun(verb, words[1:])
    outcome = verb.run(make_plan(verb, taken))
    if _speaks():
        _report(outcome, as_json="--json" in taken.flags)
    return outcome.exit_code


def _speaks() -> bool:
    """Of the processes that ``torchrun`` started one tells the outcome; their group has ended by then."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _report(outcome: Outcome, *, as_json: bool) -> None:
    print(json.dumps(to_json(outcome.data), indent=2, sort_keys=True) if as_json else outcome.text)


def find_verb(name: str) -> Verb:
    """The verb of this name.

    Raises:
        UserError: There is none.
    """
    if name in VERBS:
        return VERBS[name]
    near = difflib.get_close_matches(name, VERBS, n=1)
    raise UserError("command", f"unknown command {name!r}", allowed=", ".join(VERBS), remedy=f"did you mean {near[0]!r}?" if near else None)


def split_words(words: Sequence[str]) -> Words:
    """Takes a command line apart.

    Raises:
        UserError: A word is neither ``key=value`` nor a known flag, or a path-typed key stands twice.
    """
    paths: dict[str, str] = {}
    overrides: list[str] = []
    flags: set[str] = set()
    for word in words:
        key, equals, value = word.partition("=")
        if word in ("--help", "-h", "--json", "--multirun", "-m"):
            flags.add({"-h": "--help", "-m": "--multirun"}.get(word, word))
        elif not equals:
            raise UserError("command line", f"{word!r} is not key=value", allowed="key=value, --help, --json, --multirun")
        elif key in PATH_KEYS:
            if key in paths:
                raise UserError(key, "is given twice", remedy="keep one")
            paths[key] = value
        else:
            overrides.append(word)
    return Words(paths, tuple(overrides), frozenset(flags))


def make_plan(verb: Verb, words: Words) -> Any:
    """Composes YAML, user YAML and command line into the verb's plan.

    Precedence: single keys > ``config=FILE`` > groups chosen on the command line > recipe > defaults.

    Raises:
        Problems: Unknown, missing or ill-typed keys, all at once.
        UserError: A word is outside Hydra's grammar, or a YAML file cannot be read.
    """
    paths = dict(words.paths)
    user_file, extra_dir = paths.pop("config", None), paths.pop("configs_dir", None)
    data = _compose(verb, words.overrides, user_file, extra_dir)
    placed: list[tuple[str, Any]] = [(key, None if value == "null" else value) for key, value in paths.items()]
    return config.build(verb.plan_class(), verb.to_plan_data(data, placed), verb.keys)


def _compose(verb: Verb, overrides: Sequence[str], user_file: str | None, extra_dir: str | None) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    folders = [config.config_dir()]
    if extra_dir is not None:
        if not Path(extra_dir).is_dir():
            raise UserError("configs_dir", f"{extra_dir!r} is not a folder", allowed="a folder with recipe/, model/ ... YAML files")
        folders.append(Path(extra_dir).resolve())
    groups, values = _sort_overrides(verb.name, overrides, folders)
    search = [f"hydra.searchpath=[{','.join(_quote(f'file://{folder}') for folder in folders[1:])}]"] if extra_dir else []
    try:
        with initialize_config_dir(config_dir=str(folders[0]), version_base="1.3", job_name="dinodomain"):
            layers = [compose(config_name=verb.name, overrides=[*groups, *search])]
            if user_file is not None:
                layers.append(_user_layer(user_file))
            layers.append(compose(overrides=[f"++{word.lstrip('+')}" for word in values]))
        # Not OmegaConf.merge: a list on the command line may stand where a file has a mapping (``views.policy.flip``).
        joined: dict[str, Any] = {}
        for layer in layers:
            joined = config.overlay(joined, cast(dict[str, Any], OmegaConf.to_container(layer, resolve=False)))
        merged = OmegaConf.to_container(OmegaConf.create(joined), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(
            "command line", str(error).strip().splitlines()[0], remedy="quote values that hold commas, braces or spaces: key='\"...\"'"
        ) from None
    assert isinstance(merged, dict)
    return {str(key): value for key, value in merged.items()}


def _user_layer(user_file: str) -> Any:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        layer = OmegaConf.load(user_file)
    except (OSError, YAMLError) as error:
        raise UserError("config", f"{user_file!r} cannot be read: {error}", allowed="a YAML file of plan keys") from None
    if not OmegaConf.is_dict(layer):
        raise UserError("config", f"{user_file!r} holds a list", allowed="a YAML mapping of plan keys")
    return layer


def _sort_overrides(verb: str, overrides: Sequence[str], folders: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Words that choose a config group of the verb (``recipe=tiny``) and words that set a value."""
    groups: list[str] = []
    values: list[str] = []
    offered = config.groups_of(verb)
    for word in overrides:
        key, _, choice = word.partition("=")
        options = sorted({file.stem for folder in folders for file in (folder / key).glob("*.yaml")})
        if not options:
            values.append(word)
        elif key not in offered:
            raise UserError(key, f"is no key of {verb}", allowed=f"config groups of {verb}: {', '.join(offered) or 'none'}")
        elif choice in options:
            groups.append(word)
        else:
            near = difflib.get_close_matches(choice, options, n=1)
            raise UserError(
                key, f"{choice!r} is not known", allowed=", ".join(options), remedy=f"did you mean {near[0]!r}?" if near else None
            )
    return groups, values


def _quote(text: str) -> str:
    """A string as Hydra's grammar quotes it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def multirun(verb: Verb, words: Sequence[str]) -> int:
    """Runs one process per combination of swept values (``optim.lr=1e-3,1e-4``), each in its own ``out`` folder.

    Returns:
        The largest exit code of the jobs.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser = OverridesParser.create()
    base, axes, out = [], [], "multirun"
    for word in words:
        if word in ("--multirun", "-m"):
            continue
        if word.startswith("out="):
            out = word[4:]
        elif word.startswith("--") or word.partition("=")[0] in PATH_KEYS:
            base.append(word)
        else:
            override = parser.parse_override(word)
            if override.is_sweep_override():
                axes.append([f"{override.get_key_element()}={choice}" for choice in override.sweep_string_iterator()])
            else:
                base.append(word)
    worst = 0
    for number, job in enumerate(itertools.product(*axes)):
        print(f"job {number}: {' '.join(job)}", file=sys.stderr)
        command = [sys.executable, "-m", "dinodomain.cli", verb.name, *base, *job, f"out={os.path.join(out, str(number))}"]
        worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


def overview() -> str:
    """What ``dinodomain --help`` prints."""
    lines = [
        f"dinodomain {dinodomain.__version__}: pretrain, fine-tune, audit and export DINO-family backbones on your own scans and scenes",
        "",
    ]
    lines += [f"  dinodomain {verb.usage}\n      {verb.summary}" for verb in VERBS.values()]
    lines += [
        "",
        "Every command takes --help (its keys with meaning, unit and default), --json and key=value words.",
        "config=FILE.yaml sets many keys at once, configs_dir=DIR adds your own groups, --multirun sweeps a=1,2,3.",
    ]
    return "\n".join(lines)


def help_text(verb: Verb) -> str:
    """What ``dinodomain VERB --help`` prints: each key with kind, default and meaning."""
    lines = [f"dinodomain {verb.usage}", "", verb.summary, "", "keys:"]
    for key, entry, _ in config.plan_keys(verb.plan_class()):
        lines.append(f"  {verb.keys.to_user(key)}  [{entry.kind}; default {entry.default}]")
        lines += textwrap.wrap(entry.meaning, 110, initial_indent="      ", subsequent_indent="      ")
    offered = {name: sorted(file.stem for file in (config.config_dir() / name).glob("*.yaml")) for name in config.groups_of(verb.name)}
    if offered:
        lines += ["", "groups:"] + [f"  {name}={'|'.join(options)}" for name, options in offered.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
