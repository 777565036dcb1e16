"""The checks: pure functions from arrays to findings, each with its own planted positive and clean negative."""
