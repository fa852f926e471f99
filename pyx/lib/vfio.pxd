# Extern declarations only: the VFIO uAPI, with what vfio_compat.h adds to the oldest headers.
from libc.stdint cimport int32_t, uint32_t, uint64_t


cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)


cdef extern from "vfio_compat.h" nogil:
    const unsigned long VFIO_GET_API_VERSION
    const unsigned long VFIO_CHECK_EXTENSION
    const unsigned long VFIO_SET_IOMMU
    const unsigned long VFIO_GROUP_GET_STATUS
    const unsigned long VFIO_GROUP_SET_CONTAINER
    const unsigned long VFIO_GROUP_GET_DEVICE_FD
    const unsigned long VFIO_DEVICE_GET_INFO
    const unsigned long VFIO_DEVICE_GET_REGION_INFO
    const unsigned long VFIO_DEVICE_RESET
    const unsigned long VFIO_DEVICE_FEATURE
    const unsigned long VF_BIND_IOMMUFD
    const unsigned long VF_ATTACH_IOMMUFD_PT
    const unsigned long VF_GET_PRECOPY_INFO
    const unsigned long VF_IOMMU_IOAS_ALLOC

    const int VFIO_API_VERSION
    const int VFIO_TYPE1v2_IOMMU
    const uint32_t VFIO_GROUP_FLAGS_VIABLE
    const uint32_t VFIO_DEVICE_FEATURE_GET
    const uint32_t VFIO_DEVICE_FEATURE_SET
    const uint32_t VFIO_DEVICE_FEATURE_PROBE
    const uint32_t VFIO_DEVICE_FEATURE_MIGRATION
    const uint32_t VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE
    const uint32_t VFIO_DEVICE_FEATURE_DMA_LOGGING_START
    const uint32_t VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP
    const uint32_t VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT
    const uint32_t VF_FEATURE_MIG_DATA_SIZE
    const uint32_t VF_FEATURE_MIG_PRECOPY_INFO_V2
    const uint32_t VF_PRECOPY_INFO_REINIT
    const uint32_t VFIO_PCI_CONFIG_REGION_INDEX

    struct vfio_group_status:
        uint32_t argsz
        uint32_t flags

    struct vfio_device_info:
        uint32_t argsz
        uint32_t flags
        uint32_t num_regions
        uint32_t num_irqs

    struct vfio_region_info:
        uint32_t argsz
        uint32_t flags
        uint32_t index
        uint64_t size
        uint64_t offset

    struct vfio_device_feature:
        uint32_t argsz
        uint32_t flags

    struct vfio_device_feature_mig_state:
        uint32_t device_state
        int32_t data_fd

    struct vfio_device_feature_dma_logging_control:
        uint64_t page_size
        uint32_t num_ranges
        uint64_t ranges

    struct vfio_device_feature_dma_logging_range:
        uint64_t iova
        uint64_t length

    struct vfio_device_feature_dma_logging_report:
        uint64_t iova
        uint64_t length
        uint64_t page_size
        uint64_t bitmap

    struct vf_precopy_info:
        uint32_t argsz
        uint32_t flags
        uint64_t initial_bytes
        uint64_t dirty_bytes

    struct vf_bind_iommufd:
        uint32_t argsz
        uint32_t flags
        int32_t iommufd
        uint32_t out_devid

    struct vf_attach_iommufd_pt:
        uint32_t argsz
        uint32_t flags
        uint32_t pt_id

    struct vf_ioas_alloc:
        uint32_t size
        uint32_t flags
        uint32_t out_ioas_id

    union vf_feature_data:
        uint64_t number
        vfio_device_feature_mig_state state
        vfio_device_feature_dma_logging_control start
        vfio_device_feature_dma_logging_report report

    struct vf_feature:
        uint32_t argsz
        uint32_t flags
        vf_feature_data data
