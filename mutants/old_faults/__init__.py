"""Faults that the library once had, or nearly had, planted back by name: each must be found by a test.

A fault is the smallest edit of today's code that brings the wrong behaviour back. Most stand for a kind of situation
that users have reported of some library: a criterion with a divisor of its own, a batch of graphs, a checkpoint that a
hook rebuilds.
"""

from mutants.old_faults import averages, criteria, evaluation, merges, steps, teachers
from mutants.old_faults.fault import OldFault, planted_text

__all__ = ["OLD_FAULTS", "OldFault", "planted_text"]

OLD_FAULTS = (
    *criteria.FAULTS,
    *steps.FAULTS,
    *evaluation.FAULTS,
    *teachers.FAULTS,
    *averages.FAULTS,
    *merges.FAULTS,
)
"""All of them."""
