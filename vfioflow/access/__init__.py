"""Accesses to a device that stands still: trapped, queued, carried in the stream, replayed.

For sets with devices that have no P2P states.  What it can do, and what not: docs/access-queue.md.
"""

from vfioflow.access.memory import HeldMemory
from vfioflow.access.queue import Access, AccessQueue
from vfioflow.access.simulated import SimTrap
from vfioflow.access.trap import Trap
from vfioflow.access.window import Window

__all__ = ["Access", "AccessQueue", "HeldMemory", "SimTrap", "Trap", "Window"]
