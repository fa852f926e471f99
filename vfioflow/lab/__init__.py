"""The downtime bench: scenarios, real runs of them, and what came of it."""
