/*
 * The yardstick: the plainest C program that moves a stream from a pipe over TCP.
 *
 *   loop feed BYTES                 writes BYTES of unstructured data to standard output
 *   loop send PORT                  standard input -> TCP 127.0.0.1:PORT, read + send of 1 MiB
 *   loop receive                    prints a port, and "ready" once the sender is connected;
 *                                   then TCP -> standard output, recv + write
 *   loop drain                      reads standard input and throws it away
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
#include <sys/socket.h>
#include <unistd.h>

enum { SIZE = 1 << 20 };

static void die(const char *what)
{
    perror(what);
    exit(1);
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

static void move(int from, int to)
{
    char *memory = buffer();
    ssize_t n;
    while ((n = read(from, memory, SIZE)) != 0) {
        if (n < 0 && errno != EINTR)
            die("read");
        if (n > 0)
            write_all(to, memory, n);
    }
}

static void feed(unsigned long long left)
{
    char *memory = buffer();
    uint64_t x = 88172645463325252ULL;
    for (size_t i = 0; i < SIZE; i += 8) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(memory + i, &x, 8);
    }
    while (left) {
        size_t part = left < SIZE ? left : SIZE;
        write_all(1, memory, part);
        left -= part;
    }
}

int main(int count, char **words)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    const char *mode = count > 1 ? words[1] : "";
    fcntl(0, F_SETPIPE_SZ, SIZE);
    fcntl(1, F_SETPIPE_SZ, SIZE);
    if (!strcmp(mode, "feed") && count == 3) {
        feed(strtoull(words[2], NULL, 10));
    } else if (!strcmp(mode, "drain")) {
        char *memory = buffer();
        while (read(0, memory, SIZE) > 0)
            ;
    } else if (!strcmp(mode, "send") && count == 3) {
        int sock = socket(AF_INET, SOCK_STREAM, 0);
        address.sin_port = htons((uint16_t)atoi(words[2]));
        if (connect(sock, (struct sockaddr *)&address, length))
            die("connect");
        move(0, sock);
    } else if (!strcmp(mode, "receive")) {
        int listening = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listening, (struct sockaddr *)&address, length) || listen(listening, 1) ||
            getsockname(listening, (struct sockaddr *)&address, &length))
            die("listen");
        fprintf(stderr, "%d\n", ntohs(address.sin_port));
        int sock = accept(listening, NULL, NULL);
        if (sock < 0)
            die("accept");
        fprintf(stderr, "ready\n");
        move(sock, 1);
    } else {
        fprintf(stderr, "usage: loop feed BYTES | send PORT | receive | drain\n");
        return 2;
    }
    return 0;
}
