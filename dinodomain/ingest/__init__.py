"""Sources to a store: parallel, resumable, safe to kill; and what a store holds. No torch."""

from dinodomain import callable_room
from dinodomain.ingest.ingest import ingest
from dinodomain.ingest.inspect import Inspection, inspect
from dinodomain.ingest.join import join_labels
from dinodomain.ingest.plan import IngestPlan
from dinodomain.ingest.summary import Summary
from dinodomain.ingest.withdraw import Withdrawal, withdraw

__all__ = ["IngestPlan", "Inspection", "Summary", "Withdrawal", "ingest", "inspect", "join_labels", "withdraw"]

callable_room(__name__)
