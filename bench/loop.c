/*
 * The yardstick: the plainest C program that moves a stream over TCP, by each way that Linux has.
 *
 *   loop feed BYTES [FILE]          writes BYTES to standard output: FILE's over and over, else noise
 *   loop drain                      reads standard input and throws it away
 *   loop send HOST PORT HOW [GATE]  standard input -> TCP; HOW is read (read + send of 1 MiB),
 *                                   splice (through a pipe where the input is none) or sendfile.
 *                                   Once connected, it first waits for the end of the descriptor GATE
 *   loop receive HOST HOW           TCP -> standard output; HOW is write (recv of what is there + write),
 *                                   fill (recv of a whole MiB + write) or splice.  Says its port, and
 *                                   "ready" once the sender is connected
 *
 * send and receive end with "cpu SECONDS": their own processor time since they were connected.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SIZE = 1 << 20 };

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static double cpu(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static char *buffer(void)
{
    char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static void write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno != EINTR)
            die("write");
        if (n > 0) {
            data += n;
            size -= n;
        }
    }
}

static void copy(int from, int to, int fill)
{
    char *memory = buffer();
    ssize_t n;
    if (fill)   /* and be woken for no less */
        setsockopt(from, SOL_SOCKET, SO_RCVLOWAT, &(int){SIZE}, sizeof(int));
    while ((n = fill ? recv(from, memory, SIZE, MSG_WAITALL) : read(from, memory, SIZE)) != 0) {
        if (n < 0 && errno != EINTR)
            die("read");
        if (n > 0)
            write_all(to, memory, n);
    }
}

static int is_pipe(int fd)
{
    struct stat about;
    return fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode);
}

/* Pages from one file to another; one of the two must be a pipe. */
static ssize_t pass(int from, int to, size_t size)
{
    ssize_t n;
    do
        n = splice(from, NULL, to, NULL, size, SPLICE_F_MOVE);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        die("splice");
    return n;
}

static void splice_all(int from, int to)
{
    int between[2];
    if (is_pipe(from) || is_pipe(to)) {
        while (pass(from, to, SIZE))
            ;
        return;
    }
    if (pipe(between))
        die("pipe");
    fcntl(between[0], F_SETPIPE_SZ, SIZE);
    for (ssize_t n, left; (left = n = pass(from, between[1], SIZE)) != 0;)
        while (left)
            left -= pass(between[0], to, left);
}

static void send_file(int from, int to)
{
    ssize_t n;
    while ((n = sendfile(to, from, NULL, SIZE)) != 0)
        if (n < 0 && errno != EINTR)
            die("sendfile");
}

static void feed(unsigned long long left, const char *file)
{
    char *memory = buffer();
    size_t size = SIZE;
    uint64_t x = 88172645463325252ULL;
    for (size_t i = 0; i < SIZE; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(memory + i, &x, 8);
    }
    if (file) {
        struct stat about;
        int fd = open(file, O_RDONLY);
        if (fd < 0 || fstat(fd, &about) || !about.st_size)
            die(file);
        size = about.st_size;
        memory = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
        if (memory == MAP_FAILED)
            die("mmap");
    }
    for (size_t at = 0; left;) {
        size_t part = size - at < SIZE ? size - at : SIZE;
        if (part > left)
            part = left;
        write_all(1, memory + at, part);
        at = (at + part) % size;
        left -= part;
    }
}

static struct sockaddr_in place(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die(host);
    return address;
}

static int to_peer(const char *host, const char *port)
{
    struct sockaddr_in address = place(host, atoi(port));
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(sock, (struct sockaddr *)&address, sizeof address))
        die("connect");
    return sock;
}

static int from_peer(const char *host)
{
    struct sockaddr_in address = place(host, 0);
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&address, length) || listen(listening, 1) ||
        getsockname(listening, (struct sockaddr *)&address, &length))
        die("listen");
    fprintf(stderr, "%d\n", ntohs(address.sin_port));
    int sock = accept(listening, NULL, NULL);
    if (sock < 0)
        die("accept");
    fprintf(stderr, "ready\n");
    return sock;
}

int main(int count, char **words)
{
    const char *mode = count > 1 ? words[1] : "";
    int sending = !strcmp(mode, "send") && (count == 5 || count == 6);
    const char *how = sending ? words[4] : words[count - 1];
    if (!strcmp(mode, "feed") && (count == 3 || count == 4)) {
        feed(strtoull(words[2], NULL, 10), count == 4 ? words[3] : NULL);
    } else if (!strcmp(mode, "drain")) {
        char *memory = buffer();
        while (read(0, memory, SIZE) > 0)
            ;
    } else if (sending || (!strcmp(mode, "receive") && count == 4)) {
        fcntl(!sending, F_SETPIPE_SZ, SIZE);
        int sock = sending ? to_peer(words[2], words[3]) : from_peer(words[2]);
        int from = sending ? 0 : sock, to = sending ? sock : 1;
        char nothing;
        if (count == 6 && read(atoi(words[5]), &nothing, 1) != 0)
            die("gate");
        double before = cpu();
        if (!strcmp(how, "splice"))
            splice_all(from, to);
        else if (!strcmp(how, "sendfile"))
            send_file(from, to);
        else
            copy(from, to, !strcmp(how, "fill"));
        fprintf(stderr, "cpu %.6f\n", cpu() - before);
    } else {
        fprintf(stderr, "usage: loop feed BYTES [FILE] | drain | send HOST PORT read|splice|sendfile"
                        " [GATE] | receive HOST write|fill|splice\n");
        return 2;
    }
    return 0;
}
