"""Whole migrations under faults: each run is one seed, one schedule, and a list of invariants."""
