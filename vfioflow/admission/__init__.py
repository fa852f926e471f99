"""Who may migrate, together with whom, and to where: facts in, a verdict with reasons out.  Pure."""

from vfioflow.admission.combinations import largest_that_may, refused_pairs, smallest_refused
from vfioflow.admission.facts import Circumstances, Facts, Tracking
from vfioflow.admission.judging import judge
from vfioflow.admission.rules import RULES, Rule
from vfioflow.admission.verdict import Finding, Level, Verdict

__all__ = [
    "RULES",
    "Circumstances",
    "Facts",
    "Finding",
    "Level",
    "Rule",
    "Tracking",
    "Verdict",
    "judge",
    "largest_that_may",
    "refused_pairs",
    "smallest_refused",
]
