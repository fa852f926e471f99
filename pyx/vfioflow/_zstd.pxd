# The C API of the zstd library inside the zstandard wheel, as plain function pointers.
ctypedef struct api_t:
    unsigned (*version)() noexcept nogil
    unsigned (*is_error)(size_t code) noexcept nogil
    void *(*create_compressor)() noexcept nogil
    size_t (*free_compressor)(void *context) noexcept nogil
    size_t (*set_parameter)(void *context, int parameter, int value) noexcept nogil
    size_t (*compress)(void *context, void *to, size_t room, const void *data, size_t size) noexcept nogil
    void *(*create_decompressor)() noexcept nogil
    size_t (*free_decompressor)(void *context) noexcept nogil
    size_t (*decompress)(void *context, void *to, size_t room, const void *data, size_t size) noexcept nogil

cdef api_t zstd

cdef class Compressor:
    cdef void *context
    cdef readonly int level
    cdef void set_level(self, int level) noexcept nogil
    # The bytes written to `to`, or -1: among other reasons because `room` is too little
    cdef ssize_t compress(self, void *to, size_t room, const void *data, size_t size) noexcept nogil

cdef class Decompressor:
    cdef void *context
    # `expected` when the frame unpacks to just that many bytes, or -1
    cdef ssize_t decompress(self, void *to, size_t expected, const void *data, size_t size) noexcept nogil
