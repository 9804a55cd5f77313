/* What probing costs when nothing else is done: no state, no percentiles, no judgement. The floor under every prober.

   prober kept|fresh INTERVAL_US TICK_US < targets     asks each target once an interval, spread evenly over its ticks, until killed
   prober once COUNT GAP_US < targets                  one at a time, a kept connection each; prints each answer's nanoseconds

   A target is a line: ADDRESS PORT PATH. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 512, PATH = 512 };

struct target {
    struct sockaddr_in where;
    char *request;
    uint32_t size;
    int fd;
    uint8_t is_busy, is_sent, is_chunked;
    int64_t left; /* bytes of the body that are still to come; -1 = the head is not over */
};

static struct target *targets;
static size_t count;
static int poller, is_fresh;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t at) {
    struct timespec when = {(time_t)(at / 1000000000u), (long)(at % 1000000000u)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
        ;
}

static void read_targets(void) {
    char address[64], path[PATH];
    int port;
    while (scanf("%63s %d %511s", address, &port, path) == 3) {
        targets = realloc(targets, (count + 1) * sizeof *targets);
        struct target *one = &targets[count++];
        *one = (struct target){.fd = -1, .where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}};
        inet_pton(AF_INET, address, &one->where.sin_addr);
        const char *end = is_fresh ? "Connection: close\r\n\r\n" : "\r\n";
        one->size = (uint32_t)asprintf(&one->request, "GET %s HTTP/1.1\r\nHost: a\r\n%s", path, end);
    }
}

static void drop(struct target *one) {
    if (one->fd >= 0)
        close(one->fd);
    one->fd = -1;
    one->is_busy = 0;
}

static int connected(struct target *one, int flags) {
    int yes = 1;
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (one->fd < 0)
        return 0;
    if (!is_fresh)
        setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return connect(one->fd, (void *)&one->where, sizeof one->where) == 0 || errno == EINPROGRESS;
}

static void say(struct target *one) {
    ssize_t sent = send(one->fd, one->request, one->size, MSG_NOSIGNAL);
    one->is_sent = sent == (ssize_t)one->size;
    if (!one->is_sent && errno != EAGAIN && errno != ENOTCONN)
        drop(one);
}

static void ask(struct target *one) {
    if (one->is_busy)
        return; /* never two of one target: this turn is lost */
    one->is_busy = 1;
    one->left = -1;
    one->is_chunked = 0;
    int is_new = one->fd < 0;
    if (is_new && !connected(one, SOCK_NONBLOCK)) {
        drop(one);
        return;
    }
    say(one);
    if (is_new && one->fd >= 0) {
        struct epoll_event event = {.events = EPOLLIN | EPOLLET | (one->is_sent ? 0 : EPOLLOUT), .data.ptr = one};
        epoll_ctl(poller, EPOLL_CTL_ADD, one->fd, &event);
    }
}

/* Whether the answer is complete with these bytes. */
static int is_over(struct target *one, const char *got, ssize_t size) {
    if (one->left < 0) {
        const char *body = strstr(got, "\r\n\r\n"), *length = strcasestr(got, "\ncontent-length:");
        if (body == NULL)
            return 0;
        one->is_chunked = length == NULL;
        one->left = length ? atoll(length + 16) - (size - (body + 4 - got)) : 0;
    } else if (!one->is_chunked)
        one->left -= size;
    return one->is_chunked ? size >= 5 && !memcmp(got + size - 5, "0\r\n\r\n", 5) : one->left <= 0;
}

static void hear(struct target *one) {
    char got[65536];
    ssize_t size = recv(one->fd, got, sizeof got - 1, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        drop(one);
        return;
    }
    got[size] = 0;
    if (!is_over(one, got, size))
        return;
    one->is_busy = 0;
    if (is_fresh)
        drop(one);
}

static void listen_until(uint64_t at) {
    struct epoll_event events[EVENTS];
    for (uint64_t now = now_ns(); now < at; now = now_ns()) {
        struct timespec rest = {(time_t)((at - now) / 1000000000u), (long)((at - now) % 1000000000u)};
        int found = epoll_pwait2(poller, events, EVENTS, &rest, NULL);
        for (int i = 0; i < found; i++) {
            struct target *one = events[i].data.ptr;
            if (one->fd >= 0 && !one->is_sent && events[i].events & EPOLLOUT)
                say(one);
            if (one->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                hear(one);
        }
    }
}

/* A wheel of one interval: at each tick the targets of its slot are asked, the answers are heard while waiting for the next. */
static void run(uint64_t interval_ns, uint64_t tick_ns) {
    uint64_t start = now_ns(), slots = interval_ns / tick_ns ? interval_ns / tick_ns : 1;
    for (uint64_t tick = 0;; tick++) {
        uint64_t slot = tick % slots;
        for (size_t i = count * slot / slots; i < count * (slot + 1) / slots; i++)
            ask(&targets[i]);
        uint64_t due = start + (tick + 1) * tick_ns;
        if (now_ns() > due + interval_ns)
            start += now_ns() - due; /* hopelessly late: what was missed is not made up for */
        listen_until(due);
    }
}

static void once(size_t probes, uint64_t gap_ns) {
    char got[65536];
    uint64_t start = now_ns();
    for (size_t i = 0; i < probes + count; i++) {
        struct target *one = &targets[i % count];
        if (one->fd < 0 && !connected(one, 0)) {
            perror("prober");
            exit(1);
        }
        if (i >= count) /* the first round only connects */
            sleep_until(start + i * gap_ns);
        uint64_t sent = now_ns();
        if (send(one->fd, one->request, one->size, MSG_NOSIGNAL) < 0 || recv(one->fd, got, sizeof got, 0) <= 0) {
            perror("prober");
            exit(1);
        }
        if (i >= count)
            printf("%lu\n", (unsigned long)(now_ns() - sent));
    }
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "prober kept|fresh INTERVAL_US TICK_US | prober once COUNT GAP_US\n");
        return 2;
    }
    is_fresh = !strcmp(argv[1], "fresh");
    read_targets();
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (!strcmp(argv[1], "once"))
        once((size_t)atoll(argv[2]), (uint64_t)atoll(argv[3]) * 1000u);
    else
        run((uint64_t)atoll(argv[2]) * 1000u, (uint64_t)atoll(argv[3]) * 1000u);
}
