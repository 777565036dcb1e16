"""What every statistical check shares: attributes, unit-level nulls and intervals, planted leaks, verdicts."""
