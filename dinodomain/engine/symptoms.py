"""All that can be found in a run, in the order in which it is looked for."""

from __future__ import annotations

from dinodomain.engine import quality, strain
from dinodomain.engine.finding import Symptom

_COLLAPSES = ("few prototypes", "uniform", "flat")
SYMPTOMS = (
    Symptom(quality.few_prototypes),
    Symptom(quality.uniform, explained_by=("few prototypes",)),
    Symptom(quality.flat, explained_by=("few prototypes", "uniform")),
    Symptom(quality.rank, explained_by=_COLLAPSES),
    Symptom(strain.skipped),
    Symptom(strain.gradients, explained_by=_COLLAPSES),
    Symptom(quality.centre, explained_by=_COLLAPSES),
    Symptom(quality.worse, explained_by=(*_COLLAPSES, "rank")),
    Symptom(quality.neighbours, explained_by=(*_COLLAPSES, "rank", "worse")),
    Symptom(quality.dense, explained_by=(*_COLLAPSES, "rank", "worse")),
    Symptom(quality.unmoved, explained_by=(*_COLLAPSES, "vanished", "skipped")),
    Symptom(strain.still, explained_by=(*_COLLAPSES, "vanished", "skipped", "unmoved")),
    Symptom(strain.starved),
    Symptom(strain.leak),
)
