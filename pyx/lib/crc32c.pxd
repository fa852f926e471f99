# Extern declarations only: the digest of a stream.  Each extension that includes it calls the set-up once.
from libc.stdint cimport uint32_t

cdef extern from "crc32c.h" nogil:
    uint32_t crc32c "vfioflow_crc32c"(uint32_t crc, const void *data, size_t size)
    void crc32c_setup "vfioflow_crc32c_setup"(int most)
    int crc32c_hardware "vfioflow_crc_hardware"
