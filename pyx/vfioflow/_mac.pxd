# The tags of data frames: GMAC (AES-256) by the libcrypto that Python itself is linked with.
from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    TAG_SIZE = 16
    NONCE_SIZE = 12

ctypedef struct param_t:        # OSSL_PARAM of OpenSSL 3
    const char *key
    unsigned int data_type
    void *data
    size_t data_size
    size_t return_size

ctypedef struct api_t:
    unsigned long (*version)() noexcept nogil
    void *(*fetch)(void *library, const char *algorithm, const char *properties) noexcept nogil
    void (*free)(void *mac) noexcept nogil
    void *(*new_context)(void *mac) noexcept nogil
    void (*free_context)(void *context) noexcept nogil
    int (*init)(void *context, const uint8_t *key, size_t size, const param_t *params) noexcept nogil
    int (*update)(void *context, const uint8_t *data, size_t size) noexcept nogil
    int (*final)(void *context, uint8_t *to, size_t *size, size_t room) noexcept nogil
    param_t (*text)(const char *key, char *value, size_t size) noexcept nogil
    param_t (*octets)(const char *key, void *value, size_t size) noexcept nogil
    param_t (*last)() noexcept nogil

# One channel's
ctypedef struct mac_t:
    void *context
    uint8_t nonce[NONCE_SIZE]
    param_t params[2]           # where the nonce is
    uint64_t number             # of the next frame


cdef class Mac:
    cdef mac_t c


# Put the tag of the next frame into `to`; 0 or -EIO
cdef int mac_tag(mac_t *mac, const void *head, size_t head_size, const void *payload, size_t size,
                 uint8_t *to) noexcept nogil
# Whether the tag of the next frame is right; takes as long whatever is wrong
cdef bint mac_fits(mac_t *mac, const void *head, size_t head_size, const void *payload, size_t size,
                   const uint8_t *tag) noexcept nogil
