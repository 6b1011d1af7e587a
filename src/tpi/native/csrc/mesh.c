/* Links to all peers at once. What cluster/mesh/mesh.py and datalink.py do. */

#include "exchange.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MAX_QUEUED = 64, SEND_BYTES = 64 << 10 };
enum { FRAME_VERSION = 2, FIRST_PHASE = 1, LAST_PHASE = 5, MAX_PAYLOAD_BYTES = 64 << 20 };

typedef struct {
    int (*read)(void *ssl, void *data, int length);
    int (*write)(void *ssl, const void *data, int length);
    int (*get_error)(const void *ssl, int result);
    int (*pending)(const void *ssl);
    void (*clear_error)(void);
} tls_functions;

typedef struct {
    uint8_t *frame;
    uint32_t capacity;
    int key_bytes;
    uint8_t key[KEY];
    int32_t *exchange;
} expectation;

typedef struct {
    const uint8_t *frame, *data;
    size_t length;
    int32_t *exchange;
    double begun_s; /* when its first bytes left, if that is logged */
} message;

/* trace.py's EVENT; peer is the number of the link. */
typedef struct {
    double begin_s, end_s;
    uint8_t kind, part;
    int16_t peer;
    int32_t block;
    uint64_t pass;
    uint32_t n_bytes, phase;
} event;

enum { SEND = 5, RECEIVE = 6 };

typedef struct {
    void *ssl; /* NULL: a plain socket */
    int fd;
    int read_wants, write_wants;
    int error, detail; /* of BROKEN the system's error, of TOO_LARGE and TOO_MANY the limit */
    int n_header, is_parked;
    uint8_t header[HEADER];
    uint8_t *at; /* where the payload that is under way goes on, NULL: none is */
    size_t left;
    int32_t *exchange;
    double begun_s;
    int n_expected;
    expectation expected[MAX_QUEUED];
    int n_outgoing;
    message outgoing[MAX_QUEUED];
    uint64_t n_sent, n_received;
} link_end;

struct mesh {
    tls_functions tls;
    int is_stopped, n_links;
    struct pollfd *polled; /* one for each link, and one to be woken by */
    event *log;            /* NULL: nothing is logged */
    int64_t log_capacity, n_logged, n_dropped;
    link_end links[];
};

/* TLS or plain bytes: what was moved, 0 if nothing can be now, -1 with link->error. */

static int fail(link_end *link, int error, int detail)
{
    if (!link->error) {
        link->error = error;
        link->detail = detail;
    }
    return -1;
}

static int after_tls(mesh *m, link_end *link, int result, int *wants)
{
    enum { SSL_ERROR_SSL = 1, WANT_READ = 2, WANT_WRITE = 3, SYSCALL = 5, ZERO_RETURN = 6 };
    int error = m->tls.get_error(link->ssl, result);
    if (error == WANT_READ || error == WANT_WRITE) {
        *wants = error == WANT_READ ? POLLIN : POLLOUT;
        return 0;
    }
    char next;
    int is_end = error == SSL_ERROR_SSL && recv(link->fd, &next, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
    if (error == ZERO_RETURN || (error == SYSCALL && errno == 0) || is_end) /* with TLS's farewell, or without */
        return fail(link, CLOSED, 0);
    return fail(link, BROKEN, error == SYSCALL ? errno : 0);
}

static int take(mesh *m, link_end *link, void *data, size_t length)
{
    int n;
    if (link->ssl) {
        m->tls.clear_error();
        errno = 0;
        n = m->tls.read(link->ssl, data, length > INT32_MAX ? INT32_MAX : (int)length);
        if (n <= 0)
            return after_tls(m, link, n, &link->read_wants);
    } else {
        do
            n = (int)recv(link->fd, data, length, 0);
        while (n < 0 && errno == EINTR);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n <= 0)
            return fail(link, n ? BROKEN : CLOSED, errno);
    }
    link->read_wants = POLLIN;
    link->n_received += (uint64_t)n;
    return n;
}

static int give(mesh *m, link_end *link, const void *data, size_t length)
{
    int n;
    if (link->ssl) {
        m->tls.clear_error();
        errno = 0;
        n = m->tls.write(link->ssl, data, (int)length);
        if (n <= 0)
            return after_tls(m, link, n, &link->write_wants);
    } else {
        do
            n = (int)send(link->fd, data, length, MSG_NOSIGNAL);
        while (n < 0 && errno == EINTR);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n < 0)
            return fail(link, BROKEN, errno);
    }
    link->write_wants = POLLOUT;
    link->n_sent += (uint64_t)n;
    return n;
}

/* What is logged of frames. */

static double log_now_s(const mesh *m)
{
    return m->log ? now_s() : 0;
}

static void log_frame(mesh *m, const link_end *link, int kind, const uint8_t *header, double begun_s)
{
    if (!m->log)
        return;
    if (m->n_logged == m->log_capacity) {
        m->n_dropped++;
        return;
    }
    m->log[m->n_logged++] = (event){
        .begin_s = begun_s,
        .end_s = now_s(),
        .kind = (uint8_t)kind,
        .part = header[6],
        .peer = (int16_t)(link - m->links),
        .block = (int32_t)number_at(header + 12, 4),
        .pass = number_at(header + 16, 8),
        .n_bytes = (uint32_t)number_at(header + LENGTH_AT, 4),
        .phase = header[5],
    };
}

/* Receiving. */

/* Whether these are the bytes of a header: what frames.py's unpack_header looks at. */
static int is_header(const uint8_t *h)
{
    int is_known = !memcmp(h, "tpiF", 4) && h[4] == FRAME_VERSION && h[5] >= FIRST_PHASE && h[5] <= LAST_PHASE;
    int is_zero = !(h[7] | h[TYPE_AT + 1] | h[TYPE_AT + 2] | h[TYPE_AT + 3]);
    return is_known && is_zero && h[TYPE_AT] <= NONE && number_at(h + LENGTH_AT, 4) <= MAX_PAYLOAD_BYTES;
}

/* Whether the frame whose header has come is expected now; -1 if it never can be. */
static int find_place(mesh *m, link_end *link)
{
    if (!link->is_parked && !is_header(link->header))
        return fail(link, NO_FRAME, 0);
    int i = 0;
    while (i < link->n_expected && memcmp(link->header, link->expected[i].key, (size_t)link->expected[i].key_bytes))
        i++;
    if (i == link->n_expected) {
        /* The peer is ahead, and its frame waits; but not one from the past, or of another epoch. */
        const uint8_t *here = link->header, *wanted = link->expected[0].key;
        uint64_t pass = number_at(here + 16, 8), wanted_pass = number_at(wanted + 16, 8);
        uint64_t block = number_at(here + 12, 4), wanted_block = number_at(wanted + 12, 4);
        int is_full = link->expected[0].key_bytes == KEY;
        int is_past = is_full && (pass < wanted_pass || (pass == wanted_pass && block < wanted_block));
        if (memcmp(here, wanted, 5) || memcmp(here + 8, wanted + 8, 4) || is_past)
            return fail(link, OUT_OF_STEP, 0);
        link->is_parked = 1;
        return 0;
    }
    expectation found = link->expected[i];
    memmove(link->expected + i, link->expected + i + 1, (size_t)(--link->n_expected - i) * sizeof found);
    size_t length = (size_t)number_at(link->header + LENGTH_AT, 4);
    if (length > found.capacity)
        return fail(link, TOO_LARGE, (int)found.capacity);
    memcpy(found.frame, link->header, HEADER);
    link->is_parked = 0;
    link->begun_s = log_now_s(m);
    link->at = found.frame + HEADER;
    link->left = length;
    link->exchange = found.exchange;
    return 1;
}

/* Takes what has come, as far as it is expected. */
static int read_link(mesh *m, link_end *link)
{
    for (;;) {
        int n;
        if (!link->at) {
            if (!link->n_expected)
                return 0;
            while (link->n_header < HEADER) {
                n = take(m, link, link->header + link->n_header, (size_t)(HEADER - link->n_header));
                if (n <= 0)
                    return n;
                link->n_header += n;
            }
            n = find_place(m, link);
            if (n <= 0)
                return n;
        }
        while (link->left) {
            n = take(m, link, link->at, link->left);
            if (n <= 0)
                return n;
            link->at += n;
            link->left -= (size_t)n;
        }
        log_frame(m, link, RECEIVE, link->header, link->begun_s);
        link->at = NULL;
        link->n_header = 0;
        --*link->exchange;
        if (!link->ssl || !m->tls.pending(link->ssl))
            return 0;
    }
}

static int write_link(mesh *m, link_end *link)
{
    while (link->n_outgoing) {
        message *first = link->outgoing;
        if (first->data == first->frame)
            first->begun_s = log_now_s(m);
        int n = give(m, link, first->data, first->length > SEND_BYTES ? SEND_BYTES : first->length);
        if (n <= 0)
            return n;
        first->data += n;
        first->length -= (size_t)n;
        if (!first->length) {
            log_frame(m, link, SEND, first->frame, first->begun_s);
            --*first->exchange;
            memmove(first, first + 1, (size_t)(--link->n_outgoing) * sizeof *first);
        }
    }
    return 0;
}

static int wanted(const link_end *link)
{
    int reads = link->at || (link->n_expected && !link->is_parked) ? link->read_wants : 0;
    return reads | (link->n_outgoing ? link->write_wants : 0);
}

static int report(const mesh *m, const link_end *link)
{
    return (int)(link - m->links) * 16 + 8 + link->error;
}

/* The mesh. */

EXPORT mesh *exchange_new(const tls_functions *tls, int n_links, const int32_t *fds, void *const *ssls, int wake_fd)
{
    mesh *m = calloc(1, sizeof *m + (size_t)n_links * sizeof(link_end));
    if (!m)
        return NULL;
    m->polled = calloc((size_t)n_links + 1, sizeof *m->polled);
    if (!m->polled) {
        free(m);
        return NULL;
    }
    m->tls = *tls;
    m->n_links = n_links;
    m->polled[n_links] = (struct pollfd){.fd = wake_fd, .events = POLLIN};
    for (int i = 0; i < n_links; i++) {
        m->links[i].fd = fds[i];
        m->links[i].ssl = ssls[i];
        m->links[i].read_wants = POLLIN;
        m->links[i].write_wants = POLLOUT;
    }
    return m;
}

EXPORT void exchange_free(mesh *m)
{
    free(m->polled);
    free(m);
}

/* From any thread; whoever waits must be woken as well. */
EXPORT void exchange_stop(mesh *m)
{
    __atomic_store_n(&m->is_stopped, 1, __ATOMIC_SEQ_CST);
}

EXPORT int exchange_send(mesh *m, const int32_t *links, int n, const uint8_t *frame, int32_t *exchange)
{
    size_t length = HEADER + (size_t)number_at(frame + LENGTH_AT, 4);
    for (int i = 0; i < n; i++) {
        link_end *link = &m->links[links[i]];
        if (link->error || link->n_outgoing == MAX_QUEUED) {
            fail(link, TOO_MANY, MAX_QUEUED);
            return report(m, link);
        }
        ++*exchange;
        link->outgoing[link->n_outgoing++] = (message){frame, frame, length, exchange, 0};
        if (link->n_outgoing == 1 && write_link(m, link) < 0)
            return report(m, link);
    }
    return DONE;
}

EXPORT int exchange_expect(mesh *m, const int32_t *links, int n, uint8_t *const *frames, const uint32_t *capacities,
                           const uint8_t *key, int key_bytes, int32_t *exchange)
{
    for (int i = 0; i < n; i++) {
        link_end *link = &m->links[links[i]];
        if (link->error || link->n_expected == MAX_QUEUED) {
            fail(link, TOO_MANY, MAX_QUEUED);
            return report(m, link);
        }
        expectation *next = &link->expected[link->n_expected++];
        *next = (expectation){frames[i], capacities[i], key_bytes, {0}, exchange};
        memcpy(next->key, key, KEY);
        ++*exchange;
        if ((link->is_parked || (link->ssl && m->tls.pending(link->ssl))) && read_link(m, link) < 0)
            return report(m, link);
    }
    return DONE;
}

/* Says what to wait for next. */
EXPORT void exchange_arm(mesh *m)
{
    for (int i = 0; i < m->n_links; i++)
        m->polled[i] = (struct pollfd){.fd = m->links[i].fd, .events = (short)wanted(&m->links[i])};
}

/* Waits for what was said. Returns how much has happened, or -1 if the mesh is stopped. */
EXPORT int exchange_sleep(mesh *m, int timeout_ms)
{
    if (__atomic_load_n(&m->is_stopped, __ATOMIC_SEQ_CST))
        return -1;
    int n = poll(m->polled, (nfds_t)m->n_links + 1, timeout_ms);
    if (n <= 0)
        for (int i = 0; i <= m->n_links; i++)
            m->polled[i].revents = 0;
    else if (m->polled[m->n_links].revents) {
        char woken[256];
        while (recv(m->polled[m->n_links].fd, woken, sizeof woken, MSG_DONTWAIT) > 0)
            ;
    }
    return __atomic_load_n(&m->is_stopped, __ATOMIC_SEQ_CST) ? -1 : n < 0 ? 0 : n;
}

/* Moves what the events allow. */
EXPORT int exchange_move(mesh *m)
{
    for (int i = 0; i < m->n_links; i++) {
        link_end *link = &m->links[i];
        int events = m->polled[i].revents, is_gone = events & (POLLHUP | POLLERR | POLLNVAL);
        m->polled[i].revents = 0;
        if (!events)
            continue;
        if (link->error)
            return report(m, link);
        if (is_gone || events & link->read_wants) {
            if (read_link(m, link) < 0)
                return report(m, link);
            if (is_gone && !(wanted(link) & link->read_wants)) {
                fail(link, CLOSED, 0);
                return report(m, link);
            }
        }
        if (events & link->write_wants && link->n_outgoing && write_link(m, link) < 0)
            return report(m, link);
    }
    return DONE;
}

/* Until all that the exchange counts has come and left; TIMED_OUT after so long without any event (-1: never). An
 * interrupting signal ends it with TIMED_OUT, too: Python wants to look at it. */
EXPORT int exchange_wait(mesh *m, const int32_t *exchange, int timeout_ms)
{
    while (*exchange > 0) {
        exchange_arm(m);
        int n = exchange_sleep(m, timeout_ms);
        if (n < 0)
            return STOPPED;
        if (n == 0 && *exchange > 0)
            return TIMED_OUT;
        n = exchange_move(m);
        if (n)
            return n;
    }
    return DONE;
}

EXPORT int exchange_is_waited_for(const mesh *m, int number, const int32_t *exchange)
{
    const link_end *link = &m->links[number];
    int is = link->at && link->exchange == exchange;
    for (int i = 0; i < link->n_expected; i++)
        is |= link->expected[i].exchange == exchange;
    for (int i = 0; i < link->n_outgoing; i++)
        is |= link->outgoing[i].exchange == exchange;
    return is;
}

/* What went wrong with a link: writes the header that came, and the key that was expected first. */
EXPORT int exchange_error(const mesh *m, int number, uint8_t *header, uint8_t *key, int32_t *detail)
{
    const link_end *link = &m->links[number];
    memcpy(header, link->header, HEADER);
    memset(key, 0, KEY);
    if (link->n_expected)
        memcpy(key, link->expected[0].key, KEY);
    *detail = link->detail;
    return link->error;
}

/* From now on frames are logged into room for so many events; NULL: no longer. */
EXPORT void exchange_log(mesh *m, event *log, int64_t capacity)
{
    m->log = log;
    m->log_capacity = log ? capacity : 0;
    m->n_logged = m->n_dropped = 0;
}

/* How many events are in the log, which counts as empty from now on, and how many found no room. */
EXPORT int64_t exchange_logged(mesh *m, int64_t *n_dropped)
{
    int64_t n = m->n_logged;
    *n_dropped = m->n_dropped;
    m->n_logged = m->n_dropped = 0;
    return n;
}

EXPORT void exchange_counts(const mesh *m, uint64_t *n_sent, uint64_t *n_received)
{
    *n_sent = *n_received = 0;
    for (int i = 0; i < m->n_links; i++) {
        *n_sent += m->links[i].n_sent;
        *n_received += m->links[i].n_received;
    }
}
