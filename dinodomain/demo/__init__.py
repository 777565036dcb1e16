"""The first-run scenarios and the data they run on."""

from dinodomain.demo.plan import DemoPlan, Stories, Story
from dinodomain.demo.run import run_demo

__all__ = ["DemoPlan", "Stories", "Story", "run_demo"]
