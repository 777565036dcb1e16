"""Scenarios that prove the audit's checks: what is planted into which, and what has to be said of it."""
