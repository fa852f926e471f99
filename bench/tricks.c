/*
 * Ways to send frames other than read + sendmsg, and buffers in other than small pages: do they pay?
 *
 *   tricks send HOST PORT HOW PAGES MIB GATE   standard input -> frames of at most MIB over TCP.  HOW is
 *                                 sendmsg; zerocopy (sendmsg with MSG_ZEROCOPY); or, by io_uring, send,
 *                                 send_zc, fixed (send_zc out of registered buffers).  Connects, says
 *                                 "set", and waits for the end of the descriptor GATE
 *   tricks receive HOST PAGES MIB              frames -> standard output, by recv and write.  Says its
 *                                 port, and "ready" once the sender is connected
 *
 * A frame is a header of 32 bytes and what one read gave, at least 64 KiB, as in vfioflow.  PAGES is small,
 * huge (MADV_HUGEPAGE) or hugetlb (MAP_HUGETLB).  Both end with "cpu SECONDS", their own since they were
 * connected; the sender also with "copied PART": of the sends without a copy, those that the kernel
 * copied after all.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLOTS = 2 };   /* for all but sendmsg, which needs one; 3, 4 and 8 were no faster */
enum { MIB = 1 << 20, HUGE = 2 * MIB, PAGE = 4096, HEADER = 32, LEAST = 64 << 10, ONE_WAKE_UP = 256 << 10 };

/* A buffer.  The header lies right in front of the payload, which begins with the second page. */
struct slot {
    char *payload;
    size_t length;      /* of the payload that was read into it */
    unsigned pending;   /* sends out of it that the kernel has not let go of */
};

static struct slot slots[SLOTS];
static size_t most;              /* payload bytes in a frame */
static unsigned sent, copied;    /* completions of sends without a copy; those that were copied */

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

/* KiB of this process in transparent huge pages. */
static long huge_kib(void)
{
    char line[256];
    long kib = 0;
    FILE *about = fopen("/proc/self/smaps_rollup", "r");
    if (!about)
        die("smaps_rollup");
    while (fgets(line, sizeof line, about))
        if (sscanf(line, "AnonHugePages: %ld", &kib) == 1)
            break;
    fclose(about);
    return kib;
}

/* Room for a header and a payload, touched, so that no page fault falls into the measurement. */
static char *payload_buffer(const char *pages)
{
    int tlb = !strcmp(pages, "hugetlb"), huge = !strcmp(pages, "huge");
    size_t size = (PAGE + most + HUGE - 1) / HUGE * HUGE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | (tlb ? MAP_HUGETLB : 0);
    char *memory = mmap(NULL, tlb ? size : size + HUGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        die(tlb ? "MAP_HUGETLB" : "mmap");
    memory = (char *)(((uintptr_t)memory + HUGE - 1) / HUGE * HUGE);
    if (!tlb && madvise(memory, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
        die("madvise");
    long before = huge_kib();
    memset(memory, 1, PAGE + most);
    if (huge && huge_kib() - before < (long)(size >> 10)) {
        fprintf(stderr, "MADV_HUGEPAGE: the kernel gave small pages\n");
        exit(1);
    }
    return memory + PAGE;
}

/* Read a frame's payload, put the header in front; 0 at the end. */
static size_t fill(struct slot *slot)
{
    size_t have = 0;
    while (have < LEAST) {
        ssize_t n = read(0, slot->payload + have, most - have);
        if (n < 0 && errno != EINTR)
            die("read");
        if (n == 0)
            break;
        if (n > 0)
            have += n;
    }
    slot->length = have;
    memset(slot->payload - HEADER, 0, HEADER);
    memcpy(slot->payload - HEADER, &(uint64_t){have}, 8);
    return have;
}

static unsigned char owner[256];   /* the slot of each send, by its number modulo 256 */
static unsigned calls;

static void send_message(int sock, struct slot *slot, int flags)
{
    struct iovec parts[2] = {{slot->payload - HEADER, HEADER}, {slot->payload, slot->length}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    for (size_t left = HEADER + slot->length; left;) {
        ssize_t n = sendmsg(sock, &message, MSG_NOSIGNAL | flags);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)   /* ENOBUFS with MSG_ZEROCOPY: too much locked memory, or too many notifications */
            die("sendmsg");
        if (flags) {
            owner[calls++ % 256] = slot - slots;
            slot->pending++;
        }
        left -= n;
        size_t header = (size_t)n < parts[0].iov_len ? (size_t)n : parts[0].iov_len;
        parts[0].iov_base = (char *)parts[0].iov_base + header;
        parts[0].iov_len -= header;
        parts[1].iov_base = (char *)parts[1].iov_base + (n - header);
        parts[1].iov_len -= n - header;
    }
}

/* Take one notification off the error queue: a range of sends that the kernel has let go of. */
static void reap_errors(int sock)
{
    char control[128];
    struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
    while (recvmsg(sock, &message, MSG_ERRQUEUE) < 0) {
        if (errno != EAGAIN && errno != EINTR)
            die("MSG_ERRQUEUE");
        poll(&(struct pollfd){.fd = sock}, 1, -1);   /* POLLERR comes unasked */
    }
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    struct sock_extended_err *error = part ? (void *)CMSG_DATA(part) : NULL;
    if (!error || error->ee_errno || error->ee_origin != SO_EE_ORIGIN_ZEROCOPY)
        die("notification");
    for (unsigned number = error->ee_info;; number++) {
        slots[owner[number % 256]].pending--;
        sent++;
        copied += error->ee_code & SO_EE_CODE_ZEROCOPY_COPIED;
        if (number == error->ee_data)
            break;
    }
}

/* io_uring, with one send under way at a time: two could mix their bytes. */
static struct {
    int fd, busy;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static void ring_open(int fixed)
{
    struct io_uring_params about = {0};
    ring.fd = syscall(SYS_io_uring_setup, 2 * SLOTS, &about);
    if (ring.fd < 0)
        die("io_uring_setup");
    if (!(about.features & IORING_FEAT_SINGLE_MMAP))
        die("IORING_FEAT_SINGLE_MMAP");
    size_t sq = about.sq_off.array + about.sq_entries * sizeof(unsigned);
    size_t cq = about.cq_off.cqes + about.cq_entries * sizeof(struct io_uring_cqe);
    int access = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    char *both = mmap(NULL, sq > cq ? sq : cq, access, flags, ring.fd, IORING_OFF_SQ_RING);
    ring.sqes = mmap(NULL, about.sq_entries * sizeof *ring.sqes, access, flags, ring.fd, IORING_OFF_SQES);
    if (both == MAP_FAILED || ring.sqes == MAP_FAILED)
        die("mmap of the ring");
    ring.sq_tail = (unsigned *)(both + about.sq_off.tail);
    ring.sq_mask = (unsigned *)(both + about.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(both + about.sq_off.array);
    ring.cq_head = (unsigned *)(both + about.cq_off.head);
    ring.cq_tail = (unsigned *)(both + about.cq_off.tail);
    ring.cq_mask = (unsigned *)(both + about.cq_off.ring_mask);
    ring.cqes = (struct io_uring_cqe *)(both + about.cq_off.cqes);
    struct iovec places[SLOTS];
    for (int i = 0; i < SLOTS; i++)
        places[i] = (struct iovec){slots[i].payload - PAGE, PAGE + most};
    if (fixed && syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, places, SLOTS))
        die("IORING_REGISTER_BUFFERS");
}

static void enter(unsigned submit, unsigned wait)
{
    unsigned flags = wait ? IORING_ENTER_GETEVENTS : 0;
    while (syscall(SYS_io_uring_enter, ring.fd, submit, wait, flags, NULL, 0) < 0)
        if (errno != EINTR)
            die("io_uring_enter");
}

/* Take one completion; wait for it where there is none. */
static void reap_ring(void)
{
    while (*ring.cq_head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE))
        enter(0, 1);
    struct io_uring_cqe *done = &ring.cqes[*ring.cq_head & *ring.cq_mask];
    struct slot *slot = &slots[done->user_data];
    if (done->flags & IORING_CQE_F_NOTIF) {
        sent++;
        copied += ((unsigned)done->res & IORING_NOTIF_USAGE_ZC_COPIED) != 0;
    } else {
        ring.busy = 0;
        errno = done->res < 0 ? -done->res : EIO;
        if (done->res != (int)(HEADER + slot->length))   /* MSG_WAITALL: all or a failure */
            die("io_uring send");
    }
    if (!(done->flags & IORING_CQE_F_MORE))   /* a notification follows */
        slot->pending = 0;
    __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
}

static void send_ring(int sock, struct slot *slot, int zero_copy, int fixed)
{
    while (ring.busy)
        reap_ring();
    unsigned tail = *ring.sq_tail, place = tail & *ring.sq_mask;
    ring.sqes[place] = (struct io_uring_sqe){
        .opcode = zero_copy ? IORING_OP_SEND_ZC : IORING_OP_SEND,
        .ioprio = (zero_copy ? IORING_SEND_ZC_REPORT_USAGE : 0) | (fixed ? IORING_RECVSEND_FIXED_BUF : 0),
        .fd = sock,
        .addr = (uintptr_t)(slot->payload - HEADER),
        .len = HEADER + slot->length,
        .msg_flags = MSG_NOSIGNAL | MSG_WAITALL,
        .user_data = slot - slots,
        .buf_index = fixed ? slot - slots : 0,
    };
    ring.sq_array[place] = place;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    slot->pending = ring.busy = 1;
    enter(1, 0);
}

static void send_stream(int sock, const char *how)
{
    int message = !strcmp(how, "sendmsg"), zero_copy = !strcmp(how, "zerocopy");
    int fixed = !strcmp(how, "fixed");
    for (int i = 0;; i = message ? 0 : (i + 1) % SLOTS) {
        while (slots[i].pending)
            zero_copy ? reap_errors(sock) : reap_ring();
        if (!fill(&slots[i]))
            break;
        if (message || zero_copy)
            send_message(sock, &slots[i], zero_copy ? MSG_ZEROCOPY : 0);
        else
            send_ring(sock, &slots[i], strcmp(how, "send"), fixed);
    }
    for (int i = 0; i < SLOTS; i++)
        while (slots[i].pending)
            zero_copy ? reap_errors(sock) : reap_ring();
}

/* As vfioflow: woken when all of it is there, not by each segment. */
static void receive_payload(int sock, char *memory, size_t size)
{
    while (size) {
        ssize_t n = recv(sock, memory, size, size < ONE_WAKE_UP ? MSG_WAITALL : MSG_DONTWAIT);
        if (n > 0) {
            memory += n;
            size -= n;
        } else if (n < 0 && errno == EAGAIN) {
            setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &(int){(int)size}, sizeof(int));
            poll(&(struct pollfd){.fd = sock, .events = POLLIN}, 1, -1);
            setsockopt(sock, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int));
        } else if (n == 0 || errno != EINTR) {
            die("recv");
        }
    }
}

static void receive_stream(int sock, char *memory)
{
    char header[HEADER];
    while (recv(sock, header, HEADER, MSG_WAITALL) == HEADER) {
        uint64_t size;
        memcpy(&size, header, 8);
        receive_payload(sock, memory, size);
        for (size_t at = 0; at < size;) {
            ssize_t n = write(1, memory + at, size - at);
            if (n < 0 && errno != EINTR)
                die("write");
            at += n > 0 ? n : 0;
        }
    }
}

int main(int count, char **words)
{
    int sending = count == 8 && !strcmp(words[1], "send");
    if (!sending && !(count == 5 && !strcmp(words[1], "receive"))) {
        fprintf(stderr, "usage: tricks send HOST PORT sendmsg|zerocopy|send|send_zc|fixed PAGES MIB GATE"
                        " | receive HOST PAGES MIB\n");
        return 2;
    }
    const char *how = sending ? words[4] : "", *pages = words[count - (sending ? 3 : 2)];
    most = (size_t)atoi(words[count - (sending ? 2 : 1)]) * MIB;
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    int sock = socket(AF_INET, SOCK_STREAM, 0);
    inet_pton(AF_INET, words[2], &address.sin_addr);
    fcntl(!sending, F_SETPIPE_SZ, MIB);
    if (sending) {
        address.sin_port = htons((uint16_t)atoi(words[3]));
        if (connect(sock, (struct sockaddr *)&address, length))
            die("connect");
        for (int i = 0; i < SLOTS; i++)
            slots[i].payload = payload_buffer(pages);
        if (!strcmp(how, "zerocopy") && setsockopt(sock, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)))
            die("SO_ZEROCOPY");
        if (!strcmp(how, "send") || !strcmp(how, "send_zc") || !strcmp(how, "fixed"))
            ring_open(!strcmp(how, "fixed"));
        fprintf(stderr, "set\n");
        if (read(atoi(words[7]), &(char){0}, 1) != 0)
            die("gate");
    } else {
        slots[0].payload = payload_buffer(pages);
        if (bind(sock, (struct sockaddr *)&address, length) || listen(sock, 1) ||
            getsockname(sock, (struct sockaddr *)&address, &length))
            die("listen");
        fprintf(stderr, "%d\n", ntohs(address.sin_port));
        if ((sock = accept(sock, NULL, NULL)) < 0)
            die("accept");
        fprintf(stderr, "ready\n");
    }
    double before = cpu();
    sending ? send_stream(sock, how) : receive_stream(sock, slots[0].payload);
    fprintf(stderr, "cpu %.6f\n", cpu() - before);
    if (sending)
        fprintf(stderr, "copied %.3f\n", sent ? (double)copied / sent : 0.0);
    return 0;
}
