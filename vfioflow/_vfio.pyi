from collections.abc import Sequence
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

FEATURE_MIGRATION: int
FEATURE_MIG_DEVICE_STATE: int
FEATURE_DMA_LOGGING_START: int
FEATURE_DMA_LOGGING_STOP: int
FEATURE_DMA_LOGGING_REPORT: int
FEATURE_MIG_DATA_SIZE: int
FEATURE_MIG_PRECOPY_INFO_V2: int
CONFIG_REGION: int
SIZES: dict[str, int]
"""Sizes of the uAPI's structures, as compiled."""
REQUESTS: dict[str, int]
"""Numbers of the ioctls, as compiled."""

def probe(fd: int, index: int, *, gets: bool = False, sets: bool = False) -> bool:
    """Whether the device has a feature for GET, SET or both."""

def migration_flags(fd: int) -> int:
    """MIGRATION: the flags."""

def data_size(fd: int) -> int:
    """MIG_DATA_SIZE: what STOP_COPY would hand out, in bytes."""

def get_state(fd: int) -> int:
    """MIG_DEVICE_STATE: the present state."""

def set_state(fd: int, state: int) -> int:
    """MIG_DEVICE_STATE: change the state, which may take long.  The new data fd, or -1."""

def enable_precopy_info_v2(fd: int) -> None:
    """MIG_PRECOPY_INFOv2: ask for the flag REINIT in what `precopy_info` returns."""

def precopy_info(data_fd: int) -> tuple[int, int, bool]:
    """GET_PRECOPY_INFO: `(initial_bytes, dirty_bytes, reinit)`."""

def reset(fd: int) -> None:
    """Reset the device."""

def logging_start(fd: int, ranges: Sequence[tuple[int, int]], page_size: int) -> int:
    """DMA_LOGGING_START over `ranges` of (iova, length).  The page size that was chosen."""

def logging_stop(fd: int) -> None:
    """DMA_LOGGING_STOP."""

def logging_report(fd: int, iova: int, length: int, page_size: int, bitmap: bytearray) -> None:
    """DMA_LOGGING_REPORT: read and clear; bits are only ever set in `bitmap`."""

def device_info(fd: int) -> tuple[int, int, int]:
    """GET_INFO: `(flags, regions, interrupts)`."""

def region_info(fd: int, index: int) -> tuple[int, int, int]:
    """GET_REGION_INFO: `(offset, size, flags)` of a region."""

def read_at(fd: int, offset: int, size: int) -> bytes:
    """`size` bytes of the device fd at `offset`; fewer where the device gives no more."""

def write_at(fd: int, offset: int, data: Buffer) -> int:
    """Write `data` at `offset` of the device fd.  How much the device took."""

def check_container(container: int) -> bool:
    """Whether a container has the interface that this is written for, and a type 1 IOMMU."""

def group_viable(group: int) -> bool:
    """Whether all devices of the group are bound to VFIO drivers."""

def group_set_container(group: int, container: int) -> None:
    """Put a group into a container and give the container a type 1 IOMMU."""

def group_get_device(group: int, name: bytes) -> int:
    """The fd of a device of the group."""

def bind_iommufd(fd: int, iommufd: int) -> int:
    """Bind a device's character device to an iommufd.  The device's id there."""

def ioas_alloc(iommufd: int) -> int:
    """A new address space of an iommufd.  Its id."""

def attach_ioas(fd: int, ioas: int) -> None:
    """Attach a bound device to an address space."""
