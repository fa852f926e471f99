/* A VMM in C that migrates through `vfioflow agent`: both ends of a migration, a connection for each.
 *
 *     cc -o client client.c && ./client /run/vfioflow/agent.sock
 *
 * It opens the port itself and hands it over, as it would a VFIO device's descriptor.  The agent writes one
 * message a line.  What is read of one here is found by its name, which suffices for the few strings and
 * numbers that this program needs; a VMM has a JSON library for that.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct agent {
    const char *side;
    int fd;
    int asked;          /* the number of the last request */
    size_t have;
    char line[1 << 20]; /* what was read */
};

static struct agent here = {.side = "here"}, there = {.side = "there"};

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void open_agent(struct agent *a, const char *path)
{
    struct sockaddr_un where = {.sun_family = AF_UNIX};

    snprintf(where.sun_path, sizeof where.sun_path, "%s", path);
    a->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (a->fd < 0 || connect(a->fd, (struct sockaddr *)&where, sizeof where))
        fail(path);
}

/* One sendmsg for each message: a descriptor belongs to the message that it is sent with. */
static void say(struct agent *a, int fd, const char *text)
{
    char room[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {(void *)text, strlen(text)};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1};

    if (fd >= 0) {
        message.msg_control = room;
        message.msg_controllen = sizeof room;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    if (sendmsg(a->fd, &message, MSG_NOSIGNAL) != (ssize_t)data.iov_len)
        fail("sendmsg");
}

/* The value after "name": of the line, without quotes, into out; NULL where there is none. */
static char *find(const char *line, const char *name, char *out, size_t size)
{
    char key[64];
    snprintf(key, sizeof key, "\"%s\": ", name);
    const char *at = strstr(line, key);
    if (!at)
        return NULL;
    at += strlen(key);
    size_t length = *at == '"' ? strcspn(++at, "\"") : strcspn(at, ",}");
    snprintf(out, size, "%.*s", (int)length, at);
    return out;
}

/* The agent's next line, which stays until the next call. */
static char *next_line(struct agent *a)
{
    static char line[1 << 20];
    char *end;

    while (!(end = memchr(a->line, '\n', a->have))) {
        ssize_t got = read(a->fd, a->line + a->have, sizeof a->line - a->have);
        if (got <= 0)
            fail("the agent has gone");
        a->have += got;
    }
    size_t length = end - a->line;
    memcpy(line, a->line, length);
    line[length] = 0;
    a->have -= length + 1;
    memmove(a->line, end + 1, a->have);
    return line;
}

/* A hook: do what it asks, and answer.  An error instead of a result would fail the migration. */
static void answer(struct agent *a, const char *method, const char *id)
{
    char text[128];

    printf("%s: %s\n", a->side, method);
    snprintf(text, sizeof text, "{\"jsonrpc\": \"2.0\", \"id\": %s, \"result\": %s}\n", id,
             strcmp(method, "hook.may_switch_over") ? "null" : "true");
    say(a, -1, text);
}

/* Handle a line; returns it if it answers the last request, else NULL. */
static char *handle(struct agent *a, char *line)
{
    char method[64], id[32] = "";

    if (find(line, "method", method, sizeof method)) {
        if (find(line, "id", id, sizeof id))
            answer(a, method, id);
        return NULL;
    }
    find(line, "id", id, sizeof id);
    if (strstr(line, "\"error\": {\"code\"")) {
        fprintf(stderr, "%s: %s\n", a->side, line);
        exit(1);
    }
    return atoi(id) == a->asked ? line : NULL;
}

static void ask(struct agent *a, int fd, const char *method, const char *params, ...)
{
    char text[4096], args[2048];
    va_list list;

    va_start(list, params);
    vsnprintf(args, sizeof args, params, list);
    va_end(list);
    snprintf(text, sizeof text, "{\"jsonrpc\": \"2.0\", \"id\": %d, \"method\": \"%s\", \"params\": {%s}}\n",
             ++a->asked, method, args);
    say(a, fd, text);
}

/* The answer to the last request to `a`; the other connection's hooks are served meanwhile. */
static char *wait_for(struct agent *a)
{
    for (;;) {
        struct pollfd both[] = {{here.fd, POLLIN, 0}, {there.fd, POLLIN, 0}};
        struct agent *agents[] = {&here, &there};
        if (!memchr(here.line, '\n', here.have) && !memchr(there.line, '\n', there.have))
            poll(both, 2, -1);
        for (int n = 0; n < 2; n++) {
            struct agent *at = agents[n];
            if (!(both[n].revents & (POLLIN | POLLHUP)) && !memchr(at->line, '\n', at->have))
                continue;
            char *line = handle(at, next_line(at));
            if (line && at == a)
                return line;
        }
    }
}

int main(int count, char **words)
{
    char port[128], sent[32], taken[32], outcome[32], state[32], address[64];
    struct sockaddr_in local = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (count != 2)
        return fprintf(stderr, "usage: client SOCKET\n"), 2;
    if (bind(listener, (struct sockaddr *)&local, sizeof local) || listen(listener, 64))
        fail("listen");
    open_agent(&here, words[1]);
    open_agent(&there, words[1]);
    for (int n = 0; n < 2; n++) { /* in earnest: "fd": 0, with the device's descriptor */
        struct agent *a = n ? &there : &here;
        ask(a, -1, "device.add", "\"name\": \"net0\", \"simulated\": {\"profile\": \"mlx5\"}");
        wait_for(a);
    }
    ask(&there, listener, "destination.listen", "\"fd\": 0, \"hooks\": [\"start_vcpus\"]");
    char *line = wait_for(&there);
    find(line, "listener", port, sizeof port);
    find(line, "address", address, sizeof address);
    ask(&here, -1, "source.start", "\"to\": \"%s\", \"hooks\": [\"may_switch_over\", \"stop_vcpus\"]", address);
    find(wait_for(&here), "migration", sent, sizeof sent);
    ask(&there, -1, "destination.accept", "\"listener\": \"%s\"", port);
    find(wait_for(&there), "migration", taken, sizeof taken);
    ask(&here, -1, "migration.wait", "\"migration\": \"%s\"", sent);
    find(wait_for(&here), "outcome", outcome, sizeof outcome);
    ask(&there, -1, "migration.wait", "\"migration\": \"%s\"", taken);
    wait_for(&there);
    ask(&there, -1, "device.list", "");
    find(wait_for(&there), "state", state, sizeof state);
    printf("%s: the device is %s there\n", outcome, state);
    return strcmp(outcome, "completed") != 0;
}
