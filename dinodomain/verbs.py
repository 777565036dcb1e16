"""The verbs as a table: name, plan, keys as the user types them, and the call. Each verb's rooms are imported when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dinodomain.config import KeyMap
from dinodomain.errors import UserError
from dinodomain.lineage import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb tells: text for people, data for ``--json``, and the exit code."""

    text: str
    data: Mapping[str, Json]
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One command.

    Attributes:
        name: As typed.
        usage: The command with its main keys.
        summary: One line.
        plan: ``module:Class`` of its plan.
        call: Runs a plan.
        keys: How plan keys are spelt to the user.
    """

    name: str
    usage: str
    summary: str
    plan: str
    call: Callable[[Any], Outcome]
    keys: KeyMap = field(default_factory=KeyMap)

    def plan_class(self) -> type[Any]:
        """The plan's dataclass, imported now."""
        module, _, name = self.plan.partition(":")
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found

    def run(self, plan: Any) -> Outcome:
        """Runs a built plan."""
        return self.call(plan)

    def to_plan_data(self, data: Mapping[str, Any], paths: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """User-shaped values (nested by section) and path-typed keys, which come from the command line and win -> the plan's own nesting.

        Raises:
            UserError: One plan key is set under two spellings.
        """
        placed: dict[str, Any] = {}
        spelt: dict[str, str] = {}
        for key, value in (*_leaves(data, self.keys, [key.rpartition(".")[0] for key, _ in paths]), *paths):
            target = self.keys.to_plan(key)
            twin = next((typed for known, typed in spelt.items() if _overlap(known, target)), None)
            if twin not in (None, key):
                raise UserError(key, f"is also set as {twin}", remedy="keep one")
            spelt[target] = key
            _place(placed, target.split("."), value)
        return placed


def _leaves(data: Mapping[str, Any], keys: KeyMap, shared: Sequence[str], path: str = "") -> list[tuple[str, Any]]:
    """Key paths of a nested mapping; only the verb's own section, renamed and ``shared`` ones are opened, deeper nesting is the plan's."""
    opened = {keys.prefix, *keys.sections.values(), *shared} - {""}
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        if not path and key in opened and isinstance(value, Mapping):
            found += _leaves(value, keys, shared, f"{key}.")
        else:
            found.append((f"{path}{key}", value))
    return found


def _overlap(one: str, other: str) -> bool:
    """Whether two key paths are equal or one lies below the other."""
    short, long = sorted((f"{one}.", f"{other}."), key=len)
    return long.startswith(short)


def _place(target: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        target = target.setdefault(part, {})
    target[parts[-1]] = value


def _api(name: str) -> Callable[[Any], Any]:
    def call(plan: Any) -> Any:
        from dinodomain import api

        return getattr(api, name)(plan)

    return call


def _describe(name: str) -> Callable[[Any], Outcome]:
    """Runs an API function whose result tells ``text()`` and ``as_json()``."""

    def call(plan: Any) -> Outcome:
        result = _api(name)(plan)
        return Outcome(text=result.text(), data=result.as_json())

    return call


def _audit(plan: Any) -> Outcome:
    if plan.unit is not None:
        return _trace(plan)
    result = _api("audit")(plan)
    return Outcome(text=result.text(), data=result.as_json(), exit_code=result.exit_code)


def _trace(plan: Any) -> Outcome:
    from dinodomain.audit import trace_unit

    result = trace_unit(plan.unit, plan.runs, store=plan.store, secret=plan.secret)
    return Outcome(text=result.text(), data=result.as_json())


def _demo(plan: Any) -> Outcome:
    from dinodomain.demo import run_demo

    result = run_demo(plan)
    return Outcome(text=result.text(), data=result.as_json())


SCORED = ("checkpoint", "store", "labels", "join", "target", "group", "out", "seed")

_TABLE = (
    Verb(
        name="demo",
        usage="demo [out=DIR] [scenario=all|tiles|clinic]",
        plan="dinodomain.demo:DemoPlan",
        call=_demo,
        summary="Two first runs on data that the package carries or makes up: ingest, pretrain, probe, audit, export.",
    ),
    Verb(
        name="ingest",
        usage="ingest domain=NAME source=PATH store=PATH | store=PATH withdraw=CSV",
        plan="dinodomain.ingest:IngestPlan",
        call=_describe("ingest"),
        summary="Converts files into a store: parallel, resumable; what cannot be read is listed with its reason.",
        keys=KeyMap(prefix="ingest", top=("domain", "source", "store", "withdraw"), sections={"storage": "store"}),
    ),
    Verb(
        name="inspect",
        usage="inspect store=STORE [out=DIR] [crosswalk=RESULTS] | source=PATH domain=NAME [ingest.select=...]",
        plan="dinodomain.ingest.inspect_plan:InspectPlan",
        call=_describe("inspect"),
        summary="Prints what a store holds (with out=DIR also as pictures), or what lies below a source before it is ingested.",
        keys=KeyMap(prefix="ingest", top=("store", "source", "domain", "out", "notice", "names", "crosswalk", "top")),
    ),
    Verb(
        name="views",
        usage="views store=STORE out=DIR",
        plan="dinodomain.engine.look:ViewsFigurePlan",
        call=_describe("views"),
        summary="Draws tiles, their crops and every operation by itself, and tells the policy in numbers, to be judged before training.",
    ),
    Verb(
        name="pretrain",
        usage="pretrain domain=NAME store=STORE out=RUN [recipe=...] [model=...] [resume=auto]",
        plan="dinodomain.engine:PretrainPlan",
        call=_describe("pretrain"),
        summary="Pretrains a backbone with a student, an EMA teacher and multi-crop views; resumes where it stopped.",
    ),
    Verb(
        name="probe",
        usage="probe checkpoint=RUN store=STORE labels=CSV target=COLUMN",
        plan="dinodomain.probes:ProbePlan",
        call=_describe("probe"),
        summary="Scores frozen features by kNN and linear probes, beside the untrained backbone and raw pixels.",
        keys=KeyMap(prefix="probe", top=(*SCORED, "secret")),
    ),
    Verb(
        name="properties",
        usage="properties checkpoint=RUN store=STORE out=DIR [num=8] [attributes=[COLUMN]] [masks=CSV]",
        plan="dinodomain.properties:PropertiesPlan",
        call=_describe("properties"),
        summary="Draws and measures attention, PCA maps, regions, matching, retrieval and label propagation beside the untrained network.",
    ),
    Verb(
        name="finetune",
        usage="finetune checkpoint=RUN store=STORE labels=CSV target=COLUMN task=classify|regress out=DIR",
        plan="dinodomain.finetune:FinetunePlan",
        call=_describe("finetune"),
        summary="Trains a head, or head and backbone, on few labels; scores it on units it never saw.",
        keys=KeyMap(prefix="finetune", top=(*SCORED, "task", "secret")),
    ),
    Verb(
        name="audit",
        usage="audit checkpoint=RUN store=STORE [metadata=CSV] [audit.attributes=[...]] out=DIR [gate=POLICY.yaml] | verify=REPORT "
        "| audit.unit=UNIT audit.runs=[DIR]",
        plan="dinodomain.audit:AuditPlan",
        call=_audit,
        summary="Answers the four governance questions with evidence; what could not be assessed is said, never passed.",
        keys=KeyMap(prefix="audit", top=(*SCORED, "metadata", "features", "gate", "report", "secret", "verify", "against")),
    ),
    Verb(
        name="embed",
        usage="embed checkpoint=RUN store=STORE out=DIR",
        plan="dinodomain.embed:EmbedPlan",
        call=_describe("embed"),
        summary="Writes pooled features (and tokens) of a store to disk, keyed by content.",
        keys=KeyMap(prefix="embed", top=("checkpoint", "store", "out")),
    ),
    Verb(
        name="export",
        usage="export checkpoint=RUN format=timm|safetensors|torch_export out=DIR [audit=REPORT]",
        plan="dinodomain.export:ExportPlan",
        call=_describe("export"),
        summary="Writes the teacher backbone so that other pipelines load it without this package.",
        keys=KeyMap(prefix="export", top=("checkpoint", "format", "out", "audit", "waive_audit")),
    ),
    Verb(
        name="doctor",
        usage="doctor [run=RUN | store=STORE]",
        plan="dinodomain.engine.doctor:DoctorPlan",
        call=_describe("doctor"),
        summary="Checks the installation, says in plain words how a run fares, or measures how fast a store is read here.",
    ),
)

VERBS: Mapping[str, Verb] = {verb.name: verb for verb in _TABLE}
