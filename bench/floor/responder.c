/* Answers probes as cheaply as the kernel allows, and counts them.

   responder PORT COUNTERS [DELAY_US [FAIL_FROM]]

   Listens on every loopback address at PORT. COUNTERS: a file of three uint64 in our byte order, shared with whoever reads it: requests,
   connections accepted, requests that were refused a 200. DELAY_US: each answer leaves so long after its request came; the process
   then spins, for a timer would be late. /fail gives 503, /json a JSON body, everything else "ok". FAIL_FROM: addresses whose last byte
   is this or more give 503 whatever they are asked. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1 << 17, EVENTS = 512, WAITING = 1 << 17 };

struct connection {
    uint32_t life;      /* so that an answer that waits is not sent to a successor of its descriptor */
    uint8_t matched;    /* how much of the blank line that ends a request has been seen */
    uint8_t has_begun;
    char kind;          /* the first letter of the path */
    uint8_t closes;
    uint8_t fails;      /* whatever it is asked */
};

struct waiting {
    uint64_t due;
    int fd;
    uint32_t life;
};

static struct connection connections[MOST];
static struct waiting ring[WAITING];
static uint32_t head, tail;
static uint64_t *counters, delay_ns;
static int poller, fail_from = 256;

static const char OK[] = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\nok\n";
static const char JSON[] = "HTTP/1.1 200 OK\r\nContent-Length: 15\r\nContent-Type: application/json\r\n\r\n{\"status\":\"ok\"}";
static const char FAIL[] = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\nContent-Type: text/plain\r\n\r\nno\n";

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void drop(int fd) {
    connections[fd].life++;
    close(fd);
}

static void answer(int fd) {
    struct connection *one = &connections[fd];
    const char *text = one->kind == 'j' ? JSON : one->kind == 'f' ? FAIL : OK;
    size_t size = one->kind == 'j' ? sizeof JSON - 1 : one->kind == 'f' ? sizeof FAIL - 1 : sizeof OK - 1;
    counters[0]++;
    counters[2] += one->kind == 'f';
    if (send(fd, text, size, MSG_NOSIGNAL) != (ssize_t)size || one->closes)
        drop(fd);
}

static void answer_due(void) {
    uint64_t now = now_ns();
    while (head != tail && ring[head % WAITING].due <= now) {
        struct waiting *next = &ring[head++ % WAITING];
        if (connections[next->fd].life == next->life)
            answer(next->fd);
    }
}

static void take(int fd) {
    struct connection *one = &connections[fd];
    char got[4096];
    ssize_t size = recv(fd, got, sizeof got - 1, 0);
    if (size < 0 && errno == EAGAIN)
        return;
    if (size <= 0) {
        drop(fd);
        return;
    }
    got[size] = 0;
    if (!one->has_begun) {
        one->has_begun = 1;
        one->closes = 0;
        one->kind = one->fails ? 'f' : size > 5 ? got[5] : 0;
    }
    one->closes |= strcasestr(got, "\nconnection: close") != NULL;
    for (ssize_t i = 0; i < size; i++) {
        one->matched = got[i] == (one->matched % 2 ? '\n' : '\r') ? one->matched + 1 : got[i] == '\r';
        if (one->matched < 4)
            continue;
        one->matched = one->has_begun = 0;
        if (!delay_ns)
            answer(fd);
        else if (tail - head < WAITING)
            ring[tail++ % WAITING] = (struct waiting){now_ns() + delay_ns, fd, one->life};
        return; /* no prober sends a second request before the first is answered */
    }
}

/* Of the address that was called. */
static int last_byte(int fd) {
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    getsockname(fd, (void *)&here, &size);
    return (int)(ntohl(here.sin_addr.s_addr) & 255);
}

static void accept_all(int listener) {
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        int one = 1;
        if (fd >= MOST) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd] = (struct connection){.life = connections[fd].life, .fails = fail_from < 256 && last_byte(fd) >= fail_from};
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
        counters[1]++;
    }
}

static int open_listener(int port) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_ANY)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* All of 127.0.0.0/8 and nobody else: bound to every address, on the loopback device only. */
    if (setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "lo", 2) || bind(fd, (void *)&where, sizeof where) || listen(fd, 65535)) {
        perror("responder");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "responder PORT COUNTERS [DELAY_US [FAIL_FROM]]\n");
        return 2;
    }
    int listener = open_listener(atoi(argv[1])), file = open(argv[2], O_RDWR);
    counters = mmap(NULL, 24, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (counters == MAP_FAILED) {
        perror(argv[2]);
        return 1;
    }
    fail_from = argc > 4 ? atoi(argv[4]) : 256;
    delay_ns = argc > 3 ? (uint64_t)atoll(argv[3]) * 1000u : 0;
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int found = epoll_wait(poller, events, EVENTS, head == tail ? -1 : 0);
        for (int i = 0; i < found; i++)
            if (events[i].data.fd == listener)
                accept_all(listener);
            else
                take(events[i].data.fd);
        if (head != tail)
            answer_due();
    }
}
