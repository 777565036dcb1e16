"""Probes: how much of a target can be read from frozen features, by folds of units, beside an untrained encoder and pixels."""
