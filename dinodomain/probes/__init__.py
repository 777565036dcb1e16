"""Probes: how much of a target can be read from frozen features, by folds of units, beside an untrained encoder and pixels."""

from dinodomain.probes.few_label import draw_labelled
from dinodomain.probes.folds import grouped_folds, index_units
from dinodomain.probes.knn import knn
from dinodomain.probes.linear import linear
from dinodomain.probes.plan import ProbePlan
from dinodomain.probes.report import Difference, ProbeReport, Score
from dinodomain.probes.run import Target, read_target, run_probe
from dinodomain.probes.scores import Interval, percentile_interval, plain, unit_weights, wilson
from dinodomain.probes.verb import probe

__all__ = [
    "Difference",
    "Interval",
    "ProbePlan",
    "ProbeReport",
    "Score",
    "Target",
    "draw_labelled",
    "grouped_folds",
    "index_units",
    "knn",
    "linear",
    "percentile_interval",
    "plain",
    "probe",
    "read_target",
    "run_probe",
    "unit_weights",
    "wilson",
]
