"""How a pump fails: what it notes without the GIL, and the one place where that becomes an exception."""

from libc.stdint cimport uint64_t

from errnos cimport EBADMSG, ECONNRESET

import os

from vfioflow.errors import DeviceError, IntegrityError, PeerLost, ProtocolError


cdef int fail(fault_t *fault, where_t where, int status, int lane, uint64_t offset) noexcept nogil:
    fault.where = where
    fault.status = status
    fault.lane = lane
    fault.offset = offset
    return status


cdef object raise_fault(fault_t *fault, object name, object action, object port=None, str title=""):
    """The one place where a pump's failure becomes an exception; ``title``: of no device's stream."""
    at = f"{title or f'device {name}'} at byte {fault.offset} of its stream"
    if fault.where == AT_DEVICE:
        advice = "" if port is None else port.advice
        raise DeviceError(name, f"{action} at byte {fault.offset} of its stream", -fault.status, advice)
    if fault.where == AT_DIGEST:
        raise IntegrityError(f"{at}: the digest does not agree with the bytes that arrived")
    if fault.where == AT_ZSTD:
        raise IntegrityError(f"{at}: a compressed frame does not unpack")
    if fault.where == AT_MEMORY:
        raise MemoryError(f"{at}: no buffer")
    if fault.where == AT_TAG:
        raise IntegrityError("a data frame was changed on the way: its tag is wrong")
    if fault.where == AT_FRAME:
        if fault.status == -EBADMSG:
            raise IntegrityError("a data frame is damaged: its header does not check")
        about = f"{at}: " if fault.lane >= 0 else ""
        raise ProtocolError(f"{about}a data frame that the protocol does not allow here")
    if fault.status == -ECONNRESET:
        raise PeerLost("the peer closed a data connection in the middle of a stream")
    raise PeerLost(f"a data connection failed: {os.strerror(-fault.status)}")
