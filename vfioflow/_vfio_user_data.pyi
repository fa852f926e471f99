from typing_extensions import Buffer

from vfioflow._fdio import Port
from vfioflow._vfio_user import Line

class DataPort(Port):
    """The data of a session with a vfio-user server, in one direction.

    Reading gives 0 when nothing is left: for now in PRE_COPY, for good in STOP_COPY.  Writing gives
    what the server has taken.  ENODEV once the session is over.  Raises OSError (EINVAL): ``piece``
    or ``most`` cannot be.
    """

    def __init__(self, fd: int, line: Line, piece: int, most: int, precopy: bool) -> None: ...
    def progress(self) -> tuple[int, int, tuple[int, float], tuple[int, float]]:
        """How far reading is.

        Bytes so far; how many times nothing was left; of the time since the last of these, and of the
        time before it back to the last but one: bytes and seconds.
        """

    def stop_copy(self, timeout: float) -> None:
        """Before PRE_COPY -> STOP_COPY: wait for what was asked for; from then on 0 is the end.

        Raises OSError: the connection is broken; TimeoutError: not within ``timeout`` seconds.
        """

    def end(self) -> None:
        """The session is over: what was asked for is thrown away when it comes."""

    def readinto(self, buffer: Buffer) -> int:
        """One read as a pump does it, for callers in Python: the bytes read.  Raises OSError."""

    def write(self, data: Buffer) -> int:
        """One write as a pump does it, for callers in Python: the bytes taken.  Raises OSError."""
