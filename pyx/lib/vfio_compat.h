/* What Linux 6.1's headers (Debian 12's) lack of the VFIO and iommufd uAPI, under names of our own, so
 * that newer headers do not clash; those are checked against it where they are there.
 * Numbers and layouts: include/uapi/linux/vfio.h and iommufd.h of Linux 6.2 to 7.1. */
#ifndef VFIOFLOW_VFIO_COMPAT_H
#define VFIOFLOW_VFIO_COMPAT_H

#include <stddef.h>
#include <linux/ioctl.h>
#include <linux/types.h>
#include <linux/vfio.h>

#define VF_BIND_IOMMUFD _IO(VFIO_TYPE, VFIO_BASE + 18)
#define VF_ATTACH_IOMMUFD_PT _IO(VFIO_TYPE, VFIO_BASE + 19)
#define VF_GET_PRECOPY_INFO _IO(VFIO_TYPE, VFIO_BASE + 21)
#define VF_IOMMU_IOAS_ALLOC _IO(VFIO_TYPE, 0x81)

#define VF_FEATURE_MIG_DATA_SIZE 9
#define VF_FEATURE_MIG_PRECOPY_INFO_V2 12
#define VF_PRECOPY_INFO_REINIT (1 << 0)

struct vf_precopy_info {
    __u32 argsz;
    __u32 flags;
    __aligned_u64 initial_bytes;
    __aligned_u64 dirty_bytes;
};

struct vf_bind_iommufd {
    __u32 argsz;
    __u32 flags;
    __s32 iommufd;
    __u32 out_devid;
};

struct vf_attach_iommufd_pt {
    __u32 argsz;
    __u32 flags;
    __u32 pt_id;
};

struct vf_ioas_alloc {
    __u32 size;
    __u32 flags;
    __u32 out_ioas_id;
};

/* struct vfio_device_feature and its data in one, for every feature that is used here. */
union vf_feature_data {
    __aligned_u64 number; /* MIGRATION: flags; MIG_DATA_SIZE: stop_copy_length */
    struct vfio_device_feature_mig_state state;
    struct vfio_device_feature_dma_logging_control start;
    struct vfio_device_feature_dma_logging_report report;
};

struct vf_feature {
    __u32 argsz;
    __u32 flags;
    union vf_feature_data data;
};

#define VF_ASSERT(what) _Static_assert(what, #what)

VF_ASSERT(sizeof(struct vfio_device_feature) == 8);
VF_ASSERT(offsetof(struct vf_feature, data) == sizeof(struct vfio_device_feature));
VF_ASSERT(offsetof(struct vf_feature, flags) == offsetof(struct vfio_device_feature, flags));
VF_ASSERT(sizeof(struct vfio_device_feature_migration) == 8);
VF_ASSERT(sizeof(struct vfio_device_feature_mig_state) == 8);
VF_ASSERT(offsetof(struct vfio_device_feature_mig_state, data_fd) == 4);
VF_ASSERT(sizeof(struct vfio_device_feature_dma_logging_control) == 24);
VF_ASSERT(offsetof(struct vfio_device_feature_dma_logging_control, ranges) == 16);
VF_ASSERT(sizeof(struct vfio_device_feature_dma_logging_range) == 16);
VF_ASSERT(sizeof(struct vfio_device_feature_dma_logging_report) == 32);
VF_ASSERT(offsetof(struct vfio_device_feature_dma_logging_report, bitmap) == 24);
VF_ASSERT(sizeof(struct vf_precopy_info) == 24);
VF_ASSERT(offsetof(struct vf_precopy_info, initial_bytes) == 8);
VF_ASSERT(offsetof(struct vf_precopy_info, dirty_bytes) == 16);
VF_ASSERT(sizeof(struct vf_bind_iommufd) == 16);
VF_ASSERT(offsetof(struct vf_bind_iommufd, iommufd) == 8);
VF_ASSERT(offsetof(struct vf_bind_iommufd, out_devid) == 12);
VF_ASSERT(sizeof(struct vf_attach_iommufd_pt) == 12);
VF_ASSERT(offsetof(struct vf_attach_iommufd_pt, pt_id) == 8);
VF_ASSERT(sizeof(struct vf_ioas_alloc) == 12);
VF_ASSERT(offsetof(struct vf_ioas_alloc, out_ioas_id) == 8);
VF_ASSERT(VFIO_DEVICE_FEATURE == 0x3b75);
VF_ASSERT(VF_GET_PRECOPY_INFO == 0x3b79);
VF_ASSERT(VF_BIND_IOMMUFD == 0x3b76);

#ifdef VFIO_MIG_GET_PRECOPY_INFO /* 6.2 */
VF_ASSERT(VFIO_MIG_GET_PRECOPY_INFO == VF_GET_PRECOPY_INFO);
VF_ASSERT(sizeof(struct vfio_precopy_info) == sizeof(struct vf_precopy_info));
VF_ASSERT(offsetof(struct vfio_precopy_info, initial_bytes) == offsetof(struct vf_precopy_info, initial_bytes));
VF_ASSERT(offsetof(struct vfio_precopy_info, dirty_bytes) == offsetof(struct vf_precopy_info, dirty_bytes));
#endif
#ifdef VFIO_DEVICE_FEATURE_MIG_DATA_SIZE /* 6.2 */
VF_ASSERT(VFIO_DEVICE_FEATURE_MIG_DATA_SIZE == VF_FEATURE_MIG_DATA_SIZE);
VF_ASSERT(sizeof(struct vfio_device_feature_mig_data_size) == 8);
#endif
#ifdef VFIO_DEVICE_BIND_IOMMUFD /* 6.6 */
VF_ASSERT(VFIO_DEVICE_BIND_IOMMUFD == VF_BIND_IOMMUFD);
VF_ASSERT(sizeof(struct vfio_device_bind_iommufd) == sizeof(struct vf_bind_iommufd));
VF_ASSERT(VFIO_DEVICE_ATTACH_IOMMUFD_PT == VF_ATTACH_IOMMUFD_PT);
#endif
#ifdef VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 /* 7.1 */
VF_ASSERT(VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 == VF_FEATURE_MIG_PRECOPY_INFO_V2);
#endif

#endif
