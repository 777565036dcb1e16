"""The checks of the audit, one file each: what it is (``ABOUT``), ``run``, ``self_test``, and the ``CHECK`` that binds them."""

from collections.abc import Sequence

from dinodomain.audit.checks import attribute, duplicates, membership, overlap, subgroups
from dinodomain.audit.evidence import Check

CHECKS: Sequence[Check] = tuple(room.CHECK for room in (overlap, duplicates, subgroups, attribute, membership))
"""In the order in which a report shows them, question by question."""
