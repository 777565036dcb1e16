"""Trains a backbone: one step, one loop around it, and everything a run writes."""
