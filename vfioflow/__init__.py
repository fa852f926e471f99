"""Live migration of VFIO devices."""
