"""What ingest and training recorded about data, as plain tables: sources found, skipped, kept, held out, eligible, drawn."""

from dinodomain.audit.trail.kept import Kept, Left
from dinodomain.audit.trail.read import read_trail
from dinodomain.audit.trail.record import StoreDrawn, Trail, training_record
from dinodomain.audit.trail.trace import UnitTrace, trace_unit

__all__ = ["Kept", "Left", "StoreDrawn", "Trail", "UnitTrace", "read_trail", "trace_unit", "training_record"]
