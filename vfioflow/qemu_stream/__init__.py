"""What is in a QEMU migration stream: its sections, what they are, and how large.  Pure; one pass."""

from vfioflow.qemu_stream.model import Command, Ram, Section, Stream, Vfio
from vfioflow.qemu_stream.reading import read_stream

__all__ = ["Command", "Ram", "Section", "Stream", "Vfio", "read_stream"]
