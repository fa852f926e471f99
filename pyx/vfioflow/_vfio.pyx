# cython: language_level=3
"""The calls of the VFIO uAPI, one function each.  All release the GIL; OSError carries the errno."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.string cimport memset
from posix.types cimport off_t
from posix.unistd cimport pread, pwrite

from errnos cimport EINTR, errno
from vfio cimport (
    VF_ATTACH_IOMMUFD_PT,
    VF_BIND_IOMMUFD,
    VF_FEATURE_MIG_DATA_SIZE,
    VF_FEATURE_MIG_PRECOPY_INFO_V2,
    VF_GET_PRECOPY_INFO,
    VF_IOMMU_IOAS_ALLOC,
    VF_PRECOPY_INFO_REINIT,
    VFIO_API_VERSION,
    VFIO_CHECK_EXTENSION,
    VFIO_DEVICE_FEATURE,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_START,
    VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
    VFIO_DEVICE_FEATURE_GET,
    VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
    VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_PROBE,
    VFIO_DEVICE_FEATURE_SET,
    VFIO_DEVICE_GET_INFO,
    VFIO_DEVICE_GET_REGION_INFO,
    VFIO_DEVICE_RESET,
    VFIO_GET_API_VERSION,
    VFIO_GROUP_FLAGS_VIABLE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER,
    VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_SET_IOMMU,
    VFIO_TYPE1v2_IOMMU,
    ioctl,
    vf_attach_iommufd_pt,
    vf_bind_iommufd,
    vf_feature,
    vf_ioas_alloc,
    vf_precopy_info,
    vfio_device_feature,
    vfio_device_feature_dma_logging_control,
    vfio_device_feature_dma_logging_range,
    vfio_device_feature_dma_logging_report,
    vfio_device_feature_mig_state,
    vfio_device_info,
    vfio_group_status,
    vfio_region_info,
)

from vfioflow._status cimport raise_status

FEATURE_MIGRATION = VFIO_DEVICE_FEATURE_MIGRATION
FEATURE_MIG_DEVICE_STATE = VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
FEATURE_DMA_LOGGING_START = VFIO_DEVICE_FEATURE_DMA_LOGGING_START
FEATURE_DMA_LOGGING_STOP = VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
FEATURE_DMA_LOGGING_REPORT = VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
FEATURE_MIG_DATA_SIZE = VF_FEATURE_MIG_DATA_SIZE
FEATURE_MIG_PRECOPY_INFO_V2 = VF_FEATURE_MIG_PRECOPY_INFO_V2
CONFIG_REGION = VFIO_PCI_CONFIG_REGION_INDEX

SIZES = {
    "vfio_device_feature": sizeof(vfio_device_feature),
    "vfio_device_feature_mig_state": sizeof(vfio_device_feature_mig_state),
    "vfio_device_feature_dma_logging_control": sizeof(vfio_device_feature_dma_logging_control),
    "vfio_device_feature_dma_logging_range": sizeof(vfio_device_feature_dma_logging_range),
    "vfio_device_feature_dma_logging_report": sizeof(vfio_device_feature_dma_logging_report),
    "vfio_precopy_info": sizeof(vf_precopy_info),
    "vfio_device_bind_iommufd": sizeof(vf_bind_iommufd),
    "vfio_device_attach_iommufd_pt": sizeof(vf_attach_iommufd_pt),
    "iommu_ioas_alloc": sizeof(vf_ioas_alloc),
}

REQUESTS = {
    "VFIO_DEVICE_FEATURE": VFIO_DEVICE_FEATURE,
    "VFIO_DEVICE_RESET": VFIO_DEVICE_RESET,
    "VFIO_DEVICE_BIND_IOMMUFD": VF_BIND_IOMMUFD,
    "VFIO_DEVICE_ATTACH_IOMMUFD_PT": VF_ATTACH_IOMMUFD_PT,
    "VFIO_MIG_GET_PRECOPY_INFO": VF_GET_PRECOPY_INFO,
    "IOMMU_IOAS_ALLOC": VF_IOMMU_IOAS_ALLOC,
}


cdef int call(int fd, unsigned long request, void *argument) noexcept nogil:
    cdef int result = ioctl(fd, request, argument)
    return result if result >= 0 else -errno


cdef int feature(int fd, uint32_t flags, vf_feature *argument, uint32_t size) noexcept nogil:
    argument.argsz = sizeof(vfio_device_feature) + size
    argument.flags = flags
    return call(fd, VFIO_DEVICE_FEATURE, argument)


cdef int _done(int status) except? -1:
    if status < 0:
        raise_status(status)
    return status


def probe(int fd, uint32_t index, *, bint gets=False, bint sets=False):
    """Whether the device has a feature for GET, SET or both."""
    cdef vf_feature argument
    cdef uint32_t flags = index | VFIO_DEVICE_FEATURE_PROBE
    cdef int status
    memset(&argument, 0, sizeof(argument))
    if gets:
        flags |= VFIO_DEVICE_FEATURE_GET
    if sets:
        flags |= VFIO_DEVICE_FEATURE_SET
    with nogil:
        status = feature(fd, flags, &argument, sizeof(argument.data))
    return status >= 0


cdef uint64_t _get_number(int fd, uint32_t index) except? 0:
    cdef vf_feature argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    with nogil:
        status = feature(fd, index | VFIO_DEVICE_FEATURE_GET, &argument, sizeof(uint64_t))
    _done(status)
    return argument.data.number


def migration_flags(int fd):
    """MIGRATION: the flags."""
    return _get_number(fd, VFIO_DEVICE_FEATURE_MIGRATION)


def data_size(int fd):
    """MIG_DATA_SIZE: what STOP_COPY would hand out, in bytes."""
    return _get_number(fd, VF_FEATURE_MIG_DATA_SIZE)


def get_state(int fd):
    """MIG_DEVICE_STATE: the present state."""
    cdef vf_feature argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    argument.data.state.data_fd = -1
    with nogil:
        status = feature(
            fd,
            VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | VFIO_DEVICE_FEATURE_GET,
            &argument,
            sizeof(vfio_device_feature_mig_state),
        )
    _done(status)
    return argument.data.state.device_state


def set_state(int fd, uint32_t state):
    """MIG_DEVICE_STATE: change the state, which may take long.  The new data fd, or -1."""
    cdef vf_feature argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    argument.data.state.device_state = state
    argument.data.state.data_fd = -1
    with nogil:
        status = feature(
            fd,
            VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | VFIO_DEVICE_FEATURE_SET,
            &argument,
            sizeof(vfio_device_feature_mig_state),
        )
    _done(status)
    return argument.data.state.data_fd


def enable_precopy_info_v2(int fd):
    """MIG_PRECOPY_INFOv2: ask for the flag REINIT in what :func:`precopy_info` returns."""
    cdef vf_feature argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    with nogil:
        status = feature(
            fd, VF_FEATURE_MIG_PRECOPY_INFO_V2 | VFIO_DEVICE_FEATURE_SET, &argument, 0
        )
    _done(status)


def precopy_info(int data_fd):
    """GET_PRECOPY_INFO: ``(initial_bytes, dirty_bytes, reinit)``; the last only means anything
    after :func:`enable_precopy_info_v2`."""
    cdef vf_precopy_info info
    cdef int status
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    with nogil:
        status = call(data_fd, VF_GET_PRECOPY_INFO, &info)
    _done(status)
    return info.initial_bytes, info.dirty_bytes, bool(info.flags & VF_PRECOPY_INFO_REINIT)


def reset(int fd):
    """Reset the device."""
    cdef int status
    with nogil:
        status = call(fd, VFIO_DEVICE_RESET, NULL)
    _done(status)


def logging_start(int fd, ranges, uint64_t page_size):
    """DMA_LOGGING_START over ``ranges`` of (iova, length).  The page size that was chosen."""
    cdef vf_feature argument
    cdef int status
    cdef size_t i, n = len(ranges)
    cdef vfio_device_feature_dma_logging_range *table
    table = <vfio_device_feature_dma_logging_range *>PyMem_Malloc((n + 1) * sizeof(table[0]))
    if table == NULL:
        raise MemoryError
    try:
        for i in range(n):
            table[i].iova, table[i].length = ranges[i]
        memset(&argument, 0, sizeof(argument))
        argument.data.start.page_size = page_size
        argument.data.start.num_ranges = <uint32_t>n
        argument.data.start.ranges = <uintptr_t>table
        with nogil:
            status = feature(
                fd,
                VFIO_DEVICE_FEATURE_DMA_LOGGING_START | VFIO_DEVICE_FEATURE_SET,
                &argument,
                sizeof(vfio_device_feature_dma_logging_control),
            )
    finally:
        PyMem_Free(table)
    _done(status)
    return argument.data.start.page_size


def logging_stop(int fd):
    """DMA_LOGGING_STOP."""
    cdef vf_feature argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    with nogil:
        status = feature(
            fd, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP | VFIO_DEVICE_FEATURE_SET, &argument, 0
        )
    _done(status)


def logging_report(int fd, uint64_t iova, uint64_t length, uint64_t page_size,
                   unsigned char[::1] bitmap not None):
    """DMA_LOGGING_REPORT: read and clear; bits are only ever set in ``bitmap``."""
    cdef vf_feature argument
    cdef int status
    cdef uint64_t pages
    if page_size == 0 or length == 0:
        raise ValueError("a report needs a length and a page size")
    pages = length // page_size + (length % page_size != 0)
    if <uint64_t>bitmap.shape[0] < (pages // 64 + (pages % 64 != 0)) * 8:
        raise ValueError("the bitmap is too small")
    memset(&argument, 0, sizeof(argument))
    argument.data.report.iova = iova
    argument.data.report.length = length
    argument.data.report.page_size = page_size
    argument.data.report.bitmap = <uintptr_t>&bitmap[0]
    with nogil:
        status = feature(
            fd,
            VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT | VFIO_DEVICE_FEATURE_GET,
            &argument,
            sizeof(vfio_device_feature_dma_logging_report),
        )
    _done(status)


def device_info(int fd):
    """GET_INFO: ``(flags, regions, interrupts)``."""
    cdef vfio_device_info info
    cdef int status
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    with nogil:
        status = call(fd, VFIO_DEVICE_GET_INFO, &info)
    _done(status)
    return info.flags, info.num_regions, info.num_irqs


def region_info(int fd, uint32_t index):
    """GET_REGION_INFO: ``(offset, size, flags)`` of a region."""
    cdef vfio_region_info info
    cdef int status
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    info.index = index
    with nogil:
        status = call(fd, VFIO_DEVICE_GET_REGION_INFO, &info)
    _done(status)
    return info.offset, info.size, info.flags


def read_at(int fd, off_t offset, size_t size):
    """``size`` bytes of the device fd at ``offset``; fewer where the device gives no more."""
    cdef bytearray data = bytearray(size)
    cdef char *start = data
    cdef size_t done = 0
    cdef ssize_t n
    cdef int status = 0
    with nogil:
        while done < size:
            n = pread(fd, start + done, size - done, offset + <off_t>done)
            if n < 0 and errno == EINTR:
                continue
            if n <= 0:
                status = -errno if n < 0 else 0
                break
            done += n
    _done(status)
    return bytes(data[:done])


def write_at(int fd, off_t offset, const unsigned char[::1] data not None):
    """Write ``data`` at ``offset`` of the device fd.  How much the device took."""
    cdef size_t done = 0, size = data.shape[0]
    cdef ssize_t n
    cdef int status = 0
    if size == 0:
        return 0
    with nogil:
        while done < size:
            n = pwrite(fd, &data[0] + done, size - done, offset + <off_t>done)
            if n < 0 and errno == EINTR:
                continue
            if n <= 0:
                status = -errno if n < 0 else 0
                break
            done += n
    _done(status)
    return done


def check_container(int container):
    """Whether a container has the interface that this is written for, and a type 1 IOMMU."""
    cdef int version, extension
    with nogil:
        version = ioctl(container, VFIO_GET_API_VERSION)
        extension = ioctl(container, VFIO_CHECK_EXTENSION, <unsigned long>VFIO_TYPE1v2_IOMMU)
    return version == VFIO_API_VERSION and extension > 0


def group_viable(int group):
    """Whether all devices of the group are bound to VFIO drivers."""
    cdef vfio_group_status info
    cdef int status
    memset(&info, 0, sizeof(info))
    info.argsz = sizeof(info)
    with nogil:
        status = call(group, VFIO_GROUP_GET_STATUS, &info)
    _done(status)
    return bool(info.flags & VFIO_GROUP_FLAGS_VIABLE)


def group_set_container(int group, int container):
    """Put a group into a container and give the container a type 1 IOMMU."""
    cdef int status
    with nogil:
        status = call(group, VFIO_GROUP_SET_CONTAINER, &container)
    _done(status)
    with nogil:
        status = ioctl(container, VFIO_SET_IOMMU, <unsigned long>VFIO_TYPE1v2_IOMMU)
        if status < 0:
            status = -errno
    _done(status)


def group_get_device(int group, bytes name not None):
    """The fd of a device of the group."""
    cdef char *text = name
    cdef int status
    with nogil:
        status = call(group, VFIO_GROUP_GET_DEVICE_FD, text)
    return _done(status)


def bind_iommufd(int fd, int iommufd):
    """Bind a device's character device to an iommufd.  The device's id there."""
    cdef vf_bind_iommufd argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    argument.argsz = sizeof(argument)
    argument.iommufd = iommufd
    with nogil:
        status = call(fd, VF_BIND_IOMMUFD, &argument)
    _done(status)
    return argument.out_devid


def ioas_alloc(int iommufd):
    """A new address space of an iommufd.  Its id."""
    cdef vf_ioas_alloc argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    argument.size = sizeof(argument)
    with nogil:
        status = call(iommufd, VF_IOMMU_IOAS_ALLOC, &argument)
    _done(status)
    return argument.out_ioas_id


def attach_ioas(int fd, uint32_t ioas):
    """Attach a bound device to an address space."""
    cdef vf_attach_iommufd_pt argument
    cdef int status
    memset(&argument, 0, sizeof(argument))
    argument.argsz = sizeof(argument)
    argument.pt_id = ioas
    with nogil:
        status = call(fd, VF_ATTACH_IOMMUFD_PT, &argument)
    _done(status)
