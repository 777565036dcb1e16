"""Sources to a store: parallel, resumable, safe to kill. No torch."""

from dinodomain.ingest.ingest import Summary, ingest
from dinodomain.ingest.join import join_labels
from dinodomain.ingest.plan import IngestPlan

__all__ = ["IngestPlan", "Summary", "ingest", "join_labels"]
