# Extern declarations only: dlopen(3).
cdef extern from "<dlfcn.h>" nogil:
    const int RTLD_LAZY
    const int RTLD_LOCAL
    void *dlopen(const char *path, int flags)
    void *dlsym(void *handle, const char *symbol)
    char *dlerror()
