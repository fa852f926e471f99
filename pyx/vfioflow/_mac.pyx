"""Tags of data frames, without the GIL: GMAC with AES-256, from Python's own libcrypto.

Python's ``_hashlib`` extension is linked with OpenSSL's libcrypto.  It is opened as a shared library, and
each function is looked up by name through it, once, when the first key is used; what is missing or too
old is an ImportError that says so.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from dlfcn cimport RTLD_LAZY, RTLD_LOCAL, dlerror, dlopen, dlsym
from endians cimport htole64
from errnos cimport EIO

import importlib.util
import os

KEY_SIZE = 32

_NEEDED = 0x30000000
_HELP = "frames are protected with OpenSSL 3's libcrypto, by way of Python's _hashlib"

cdef api_t crypto
cdef void *gmac = NULL


cdef void *_symbol(void *handle, name) except NULL:
    cdef bytes encoded = name.encode()
    cdef void *address = dlsym(handle, encoded)
    if address == NULL:
        raise ImportError(f"Python's libcrypto has no {name}; {_HELP}")
    return address


cdef void *_open() except NULL:
    cdef void *handle
    spec = importlib.util.find_spec("_hashlib")
    if spec is None or not spec.has_location:
        raise ImportError(f"this Python has no _hashlib extension; {_HELP}")
    path = os.fsencode(spec.origin)
    handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL)
    if handle == NULL:
        raise ImportError(f"cannot open {spec.origin}: {dlerror().decode()}; {_HELP}")
    return handle


cdef int _load() except -1:
    global gmac
    cdef void *handle = _open()
    crypto.version = <unsigned long (*)() noexcept nogil> _symbol(handle, "OpenSSL_version_num")
    if crypto.version() < _NEEDED:
        raise ImportError(f"Python's libcrypto is version {crypto.version():#x}, older than 3.0; {_HELP}")
    crypto.fetch = <void *(*)(void *, const char *, const char *) noexcept nogil> _symbol(
        handle, "EVP_MAC_fetch")
    crypto.free = <void (*)(void *) noexcept nogil> _symbol(handle, "EVP_MAC_free")
    crypto.new_context = <void *(*)(void *) noexcept nogil> _symbol(handle, "EVP_MAC_CTX_new")
    crypto.free_context = <void (*)(void *) noexcept nogil> _symbol(handle, "EVP_MAC_CTX_free")
    crypto.init = <int (*)(void *, const uint8_t *, size_t, const param_t *) noexcept nogil> _symbol(
        handle, "EVP_MAC_init")
    crypto.update = <int (*)(void *, const uint8_t *, size_t) noexcept nogil> _symbol(
        handle, "EVP_MAC_update")
    crypto.final = <int (*)(void *, uint8_t *, size_t *, size_t) noexcept nogil> _symbol(
        handle, "EVP_MAC_final")
    crypto.text = <param_t (*)(const char *, char *, size_t) noexcept nogil> _symbol(
        handle, "OSSL_PARAM_construct_utf8_string")
    crypto.octets = <param_t (*)(const char *, void *, size_t) noexcept nogil> _symbol(
        handle, "OSSL_PARAM_construct_octet_string")
    crypto.last = <param_t (*)() noexcept nogil> _symbol(handle, "OSSL_PARAM_construct_end")
    gmac = crypto.fetch(NULL, b"GMAC", NULL)
    if gmac == NULL:
        raise ImportError(f"Python's libcrypto has no GMAC; {_HELP}")
    return 0


def load():
    """Look everything up, if that has not been done yet.  Raises ImportError."""
    if gmac == NULL:
        _load()


cdef int mac_tag(mac_t *mac, const void *head, size_t head_size, const void *payload, size_t size,
                 uint8_t *to) noexcept nogil:
    cdef uint64_t value = htole64(mac.number)
    cdef size_t written = 0
    memcpy(mac.nonce + NONCE_SIZE - 8, &value, 8)
    if (crypto.init(mac.context, NULL, 0, mac.params) != 1
            or crypto.update(mac.context, <const uint8_t *> head, head_size) != 1
            or (size > 0 and crypto.update(mac.context, <const uint8_t *> payload, size) != 1)
            or crypto.final(mac.context, to, &written, TAG_SIZE) != 1 or written != TAG_SIZE):
        return -EIO
    return 0


cdef bint mac_fits(mac_t *mac, const void *head, size_t head_size, const void *payload, size_t size,
                   const uint8_t *tag) noexcept nogil:
    cdef uint8_t right[TAG_SIZE]
    cdef uint8_t differs = 0
    cdef int i
    if mac_tag(mac, head, head_size, payload, size, right) < 0:
        return False
    for i in range(TAG_SIZE):
        differs |= right[i] ^ tag[i]
    return differs == 0


cdef class Mac:
    """The tags of one channel's frames, counted from 0.  For one thread at a time.

    Args:
        key: 32 bytes, for this channel of this session alone.

    Raises:
        ImportError: Python's libcrypto cannot do it.
        MemoryError: no memory.
    """

    def __cinit__(self, const uint8_t[::1] key):
        cdef param_t params[3]
        cdef char *cipher = b"AES-256-GCM"
        if key.shape[0] != KEY_SIZE:
            raise ValueError(f"a key has {KEY_SIZE} bytes, not {key.shape[0]}")
        load()
        self.c.context = crypto.new_context(gmac)
        if self.c.context == NULL:
            raise MemoryError
        memset(self.c.nonce, 0, NONCE_SIZE)
        self.c.params[0] = crypto.octets(b"iv", self.c.nonce, NONCE_SIZE)
        self.c.params[1] = crypto.last()
        params[0] = crypto.text(b"cipher", cipher, 0)
        params[1] = self.c.params[0]
        params[2] = self.c.params[1]
        if crypto.init(self.c.context, &key[0], KEY_SIZE, params) != 1:
            raise ImportError(f"Python's libcrypto does not do GMAC with AES-256; {_HELP}")

    def __dealloc__(self):
        if self.c.context != NULL:
            crypto.free_context(self.c.context)


def tag_of(Mac mac not None, uint64_t number, const uint8_t[::1] head, const uint8_t[::1] payload):
    """The tag of a frame with this number.  For tests and tools."""
    cdef uint8_t tag[TAG_SIZE]
    mac.c.number = number
    if mac_tag(&mac.c, &head[0], head.shape[0], &payload[0] if payload.shape[0] else NULL, payload.shape[0],
               tag) < 0:
        raise RuntimeError("libcrypto failed")
    return (<char *> tag)[:TAG_SIZE]
