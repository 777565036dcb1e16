"""The checks of the audit, one file each: what it is (``ABOUT``), ``run``, ``self_test``, and the ``CHECK`` that binds them."""

from collections.abc import Sequence

from dinodomain.audit.checks import (
    attribute,
    capability,
    composition,
    conditional,
    corruption,
    curation,
    declaration,
    dejavu,
    dense,
    difference,
    duplicates,
    geolocation,
    geotime,
    inherit,
    layers,
    licences,
    living,
    lodo,
    maps,
    membership,
    origin,
    outlier,
    overlap,
    provenance,
    reconstruction,
    reidentification,
    shape,
    shortcut,
    site,
    slices,
    subgroups,
    text,
    use,
)
from dinodomain.audit.evidence import Check

CHECKS: Sequence[Check] = tuple(
    room.CHECK for room in (
        provenance, composition, curation, shape, overlap, duplicates, text, origin,
        site, lodo, subgroups, slices, outlier, corruption, geotime,
        attribute, conditional, use, layers, dense, shortcut, maps, reidentification, geolocation, membership, dejavu, reconstruction,
        declaration, capability,
        licences, difference, inherit, living,
    )
)  # fmt: skip
"""In the order in which a report shows them, question by question."""
