"""What ``import dinodomain`` offers: one function per verb. Each takes the verb's plan, or its keys as keyword arguments.

``dinodomain.pretrain(domain="xray", store="s", out="run", recipe="tiny", engine={"steps": 200})`` reads like the command.
Rooms are imported when a function is called, so that ``import dinodomain`` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from dinodomain import config

if TYPE_CHECKING:
    from dinodomain.audit import AuditPlan, AuditResult
    from dinodomain.embed import Embedded, EmbedPlan
    from dinodomain.engine import Forecast, PretrainPlan, Run, Submitted
    from dinodomain.engine.doctor import DoctorPlan, Findings
    from dinodomain.engine.look import ViewsFigurePlan, Written
    from dinodomain.engine.speeds import Speeds
    from dinodomain.export import Exported, ExportPlan
    from dinodomain.finetune import FinetunePlan, Tuned
    from dinodomain.ingest import IngestPlan, Inspection, Summary, Withdrawal
    from dinodomain.ingest.crosswalk import Mapped
    from dinodomain.ingest.inspect_plan import InspectPlan
    from dinodomain.ingest.survey import Survey
    from dinodomain.model import Backbone
    from dinodomain.probes import ProbePlan, ProbeReport
    from dinodomain.properties import PropertiesPlan, PropertiesReport
    from dinodomain.store import Store

Plan = TypeVar("Plan")


def _plan(plan_class: type[Plan], plan: Plan | None, keys: Mapping[str, Any]) -> Plan:
    """The plan given, or one built strictly from keywords; a ``recipe`` is read from its YAML first."""
    if plan is not None:
        if keys:
            raise TypeError("give a plan or its keys, not both")
        return plan
    recipe = config.load_recipe(keys["recipe"]) if isinstance(keys.get("recipe"), str) else {}
    return config.build(plan_class, config.overlay(recipe, keys))


def open_store(path: str | Path, *, mixed: bool = False) -> Store:
    """Opens a store for reading.

    Args:
        path: Its folder or URL.
        mixed: Take a YAML file that lists several stores with their shares, too, as pretraining does.

    Raises:
        UserError: It is not a store, half-written, or of a newer format.
    """
    from dinodomain.store import open_store as run

    return run(path, mixed=mixed)


def load(path: str | Path) -> Backbone:
    """Loads a backbone from a run, a checkpoint or an exported file.

    Raises:
        UserError: Nothing usable there.
    """
    from dinodomain.checkpoint import load_backbone

    return load_backbone(path)


@overload
def ingest(plan: None = None, /, *, store: str, withdraw: str, **keys: Any) -> Withdrawal: ...
@overload
def ingest(plan: IngestPlan | None = None, /, **keys: Any) -> Summary: ...
def ingest(plan: IngestPlan | None = None, /, **keys: Any) -> Summary | Withdrawal:
    """Converts files into a store or, with ``withdraw``, takes sources out of one for good; see ``IngestPlan``."""
    from dinodomain.ingest import IngestPlan, withdraw
    from dinodomain.ingest import ingest as run

    made = _plan(IngestPlan, plan, keys)
    return run(made) if made.withdraw is None else withdraw(made)


def inspect(plan: InspectPlan | None = None, /, **keys: Any) -> Inspection | Survey | Mapped:
    """Summarises a store (with ``out``: pictures, too), counts what lies below a source, or maps results back; see ``InspectPlan``."""
    from dinodomain.ingest.inspect_plan import InspectPlan

    made = _plan(InspectPlan, plan, keys)
    if made.source:
        from dinodomain.ingest.survey import survey

        return survey(made.as_ingest(), made.out, top=made.top)
    if made.crosswalk is not None:
        from dinodomain.ingest.crosswalk import map_back

        return map_back(made.store, made.crosswalk, made.out or "")
    from dinodomain.ingest import inspect as run

    return run(made.store, made.out, notice=made.notice, names=made.names, top=made.top)


def views(plan: ViewsFigurePlan | None = None, /, **keys: Any) -> Written:
    """Draws source tiles, their crops and the crops' boxes; see ``ViewsFigurePlan``."""
    from dinodomain.engine.look import ViewsFigurePlan, draw_figure

    return draw_figure(_plan(ViewsFigurePlan, plan, keys))


@overload
def pretrain(plan: None = None, /, *, dry_run: Literal[True], **keys: Any) -> Forecast: ...
@overload
def pretrain(plan: None = None, /, *, launcher: Literal["submitit"], **keys: Any) -> Submitted: ...
@overload
def pretrain(plan: PretrainPlan | None = None, /, **keys: Any) -> Run: ...
def pretrain(plan: PretrainPlan | None = None, /, **keys: Any) -> Run | Forecast | Submitted:
    """Pretrains a backbone, or goes on where the run stopped; see ``PretrainPlan``.

    With ``dry_run`` it says what that takes, with ``launcher=submitit`` it gives the run to a cluster.
    """
    from dinodomain.engine import PretrainPlan, dry_run, submit
    from dinodomain.engine import pretrain as run

    made = _plan(PretrainPlan, plan, keys)
    if made.dry_run:
        return dry_run(made)
    return submit(made) if made.launcher == "submitit" else run(made)


def probe(plan: ProbePlan | None = None, /, **keys: Any) -> ProbeReport:
    """Scores frozen features beside the untrained backbone and raw pixels; see ``ProbePlan``."""
    from dinodomain.probes import ProbePlan
    from dinodomain.probes import probe as run

    return run(_plan(ProbePlan, plan, keys))


def properties(plan: PropertiesPlan | None = None, /, **keys: Any) -> PropertiesReport:
    """Draws and measures what the features are good for without labels, beside the untrained network; see ``PropertiesPlan``."""
    from dinodomain.properties import PropertiesPlan
    from dinodomain.properties import properties as run

    return run(_plan(PropertiesPlan, plan, keys))


def finetune(plan: FinetunePlan | None = None, /, **keys: Any) -> Tuned:
    """Trains a head, or head and backbone, on few labels; see ``FinetunePlan``."""
    from dinodomain.finetune import FinetunePlan
    from dinodomain.finetune import finetune as run

    return run(_plan(FinetunePlan, plan, keys))


def audit(plan: AuditPlan | None = None, /, **keys: Any) -> AuditResult:
    """Audits a checkpoint or a table of features; see ``AuditPlan``."""
    from dinodomain.audit import AuditPlan
    from dinodomain.audit import audit as run

    return run(_plan(AuditPlan, plan, keys))


def embed(plan: EmbedPlan | None = None, /, **keys: Any) -> Embedded:
    """Writes features of a store to disk; see ``EmbedPlan``."""
    from dinodomain.embed import EmbedPlan
    from dinodomain.embed import embed as run

    return run(_plan(EmbedPlan, plan, keys))


def export(plan: ExportPlan | None = None, /, **keys: Any) -> Exported:
    """Writes a backbone for other pipelines; see ``ExportPlan``."""
    from dinodomain.export import ExportPlan
    from dinodomain.export import export as run

    return run(_plan(ExportPlan, plan, keys))


def doctor(plan: DoctorPlan | None = None, /, **keys: Any) -> Findings | Speeds:
    """Looks at the installation, at one run, or at how fast a store is read; see ``DoctorPlan``."""
    from dinodomain.engine.doctor import DoctorPlan
    from dinodomain.engine.doctor import doctor as run

    return run(_plan(DoctorPlan, plan, keys))
