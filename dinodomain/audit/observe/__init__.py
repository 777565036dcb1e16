"""Shows images to the audited encoder again and keeps the arrays that checks work on: the only part of the audit that needs an encoder."""

from dinodomain.audit.observe.observer import Observer, Shown

__all__ = ["Observer", "Shown"]
