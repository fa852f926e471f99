from typing_extensions import Buffer

from vfioflow._fdio import Port
from vfioflow._sim import SimCore

class SimPort(Port):
    """A data fd of a simulated device, with the driver's own errnos, short transfers and waits.

    Reading: ENOMSG or 0 while drained in PRE_COPY, 0 at the end of STOP_COPY, ENODEV once the
    session is over.  Writing: EFAULT for a stream that is not this device's, ENOMEM past the end.
    A device that loads inside write returns from it once the data is loaded.  Raises OSError
    (EINVAL) when the device has no session.
    """

    def __init__(self, fd: int, core: SimCore) -> None: ...
    def read(self, size: int) -> bytes:
        """One read as a pump does it, for callers in Python: bytes.  Raises OSError."""

    def write(self, data: Buffer) -> int:
        """One write as a pump does it, for callers in Python: the bytes taken.  Raises OSError."""
