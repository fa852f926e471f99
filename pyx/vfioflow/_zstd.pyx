"""zstd without the GIL, from the library inside the ``zstandard`` wheel.

The wheel's ``_cffi`` extension is linked with the whole of libzstd and exports its C API.
It is opened as a shared library (never initialised as a Python module) and each function is
looked up by name; anything missing is an ImportError that says what to install.
"""

import importlib.util
import os

from dlfcn cimport RTLD_LAZY, RTLD_LOCAL, dlerror, dlopen, dlsym

_NEEDED = (1, 5, 0)

cdef enum:
    _LEVEL = 100        # ZSTD_c_compressionLevel

_HELP = (
    "vfioflow needs the library inside the zstandard package: "
    "pip install --only-binary zstandard zstandard"
)


cdef void *_symbol(void *handle, name) except NULL:
    cdef bytes encoded = name.encode()
    cdef void *address = dlsym(handle, encoded)
    if address == NULL:
        raise ImportError(f"zstandard's library does not export {name}; {_HELP}")
    return address


cdef int _load() except -1:
    cdef void *handle
    try:
        spec = importlib.util.find_spec("zstandard._cffi")
    except ModuleNotFoundError as error:
        raise ImportError(f"{error}; {_HELP}") from None
    if spec is None or spec.origin is None:
        raise ImportError(f"the installed zstandard has no _cffi extension; {_HELP}")
    path = os.fsencode(spec.origin)
    handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL)
    if handle == NULL:
        raise ImportError(f"cannot open {spec.origin}: {dlerror().decode()}; {_HELP}")
    zstd.version = <unsigned (*)() noexcept nogil> _symbol(handle, "ZSTD_versionNumber")
    zstd.is_error = <unsigned (*)(size_t) noexcept nogil> _symbol(handle, "ZSTD_isError")
    zstd.create_compressor = <void *(*)() noexcept nogil> _symbol(handle, "ZSTD_createCCtx")
    zstd.free_compressor = <size_t (*)(void *) noexcept nogil> _symbol(handle, "ZSTD_freeCCtx")
    zstd.set_parameter = <size_t (*)(void *, int, int) noexcept nogil> _symbol(
        handle, "ZSTD_CCtx_setParameter"
    )
    zstd.compress = <size_t (*)(void *, void *, size_t, const void *, size_t) noexcept nogil> _symbol(
        handle, "ZSTD_compress2")
    zstd.create_decompressor = <void *(*)() noexcept nogil> _symbol(handle, "ZSTD_createDCtx")
    zstd.free_decompressor = <size_t (*)(void *) noexcept nogil> _symbol(handle, "ZSTD_freeDCtx")
    zstd.decompress = <size_t (*)(void *, void *, size_t, const void *, size_t) noexcept nogil> _symbol(
        handle, "ZSTD_decompressDCtx")
    if zstd.version() < _NEEDED[0] * 10000 + _NEEDED[1] * 100 + _NEEDED[2]:
        raise ImportError(f"zstandard's library is zstd {version()}, older than 1.5.0; {_HELP}")
    return 0


def version():
    """The zstd library's version, such as "1.5.7"."""
    number = zstd.version()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


cdef class Compressor:
    """A compression context, used again for each chunk.

    The library takes a level beyond its own range for the nearest.  Raises MemoryError.
    """

    def __cinit__(self, int level):
        self.context = zstd.create_compressor()
        if self.context == NULL:
            raise MemoryError
        self.level = level
        if zstd.is_error(zstd.set_parameter(self.context, _LEVEL, level)):
            raise ValueError(f"zstd does not take the level {level}")

    cdef void set_level(self, int level) noexcept nogil:
        if level != self.level:
            self.level = level
            zstd.set_parameter(self.context, _LEVEL, level)

    cdef ssize_t compress(self, void *to, size_t room, const void *data, size_t size) noexcept nogil:
        cdef size_t n = zstd.compress(self.context, to, room, data, size)
        return -1 if zstd.is_error(n) else <ssize_t> n

    def __dealloc__(self):
        if self.context != NULL:
            zstd.free_compressor(self.context)


cdef class Decompressor:
    """A decompression context, used again for each chunk.  Never writes past the room it is given."""

    def __cinit__(self):
        self.context = zstd.create_decompressor()
        if self.context == NULL:
            raise MemoryError

    cdef ssize_t decompress(self, void *to, size_t expected, const void *data, size_t size) noexcept nogil:
        cdef size_t n = zstd.decompress(self.context, to, expected, data, size)
        return -1 if zstd.is_error(n) or n != expected else <ssize_t> n

    def __dealloc__(self):
        if self.context != NULL:
            zstd.free_decompressor(self.context)


_load()
