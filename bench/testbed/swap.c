/* What links cost a program that does nothing else: all ranks send each other the same number of bytes at the same time,
 * in the clear, and add nothing up.
 *
 *   swap RANK N BYTES GAP_MS ROUNDS ADDRESS ... ADDRESS
 *
 * Rounds begin when the machine's clock is at a multiple of the gap. Prints for each when it began and ended, and the
 * processor time that it took, in seconds.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_RANKS = 16, PORT = 7660, CONNECT_MS = 20 };

static int rank, n_ranks, sockets[MAX_RANKS];

static double read_clock(clockid_t which)
{
    struct timespec now;
    clock_gettime(which, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static struct sockaddr_in place_of(const char *address)
{
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_port = htons(PORT)};
    if (inet_aton(address, &place.sin_addr) == 0)
        fail(address);
    return place;
}

/* Calls all lower ranks, takes the calls of all higher ones. */
static void connect_all(char **addresses)
{
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in own = place_of(addresses[rank]);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&own, sizeof own) < 0 || listen(listener, MAX_RANKS) < 0)
        fail("cannot listen");
    for (int other = 0; other < rank; other++) {
        struct sockaddr_in place = place_of(addresses[other]);
        unsigned char number = (unsigned char)rank;
        for (;;) {
            sockets[other] = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(sockets[other], (struct sockaddr *)&place, sizeof place) == 0)
                break;
            if (errno != ECONNREFUSED)
                fail("cannot connect");
            close(sockets[other]);
            usleep(CONNECT_MS * 1000);
        }
        if (send(sockets[other], &number, 1, 0) != 1)
            fail("cannot send");
    }
    for (int other = rank + 1; other < n_ranks; other++) {
        int accepted = accept(listener, NULL, NULL);
        unsigned char number = 0;
        if (accepted < 0 || recv(accepted, &number, 1, MSG_WAITALL) != 1 || number >= n_ranks)
            fail("cannot accept");
        sockets[number] = accepted;
    }
    for (int other = 0; other < n_ranks; other++)
        if (other != rank)
            setsockopt(sockets[other], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

/* Moves what can be moved now; what is left. */
static long move(int other, int is_sending, char *data, long left)
{
    ssize_t n = is_sending ? send(sockets[other], data, (size_t)left, MSG_DONTWAIT | MSG_NOSIGNAL)
                           : recv(sockets[other], data, (size_t)left, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN))
        fail(is_sending ? "cannot send" : "cannot receive");
    return n > 0 ? left - n : left;
}

static void swap(char *data, long n_bytes)
{
    long to_send[MAX_RANKS] = {0}, to_receive[MAX_RANKS] = {0};
    for (int step = 1; step < n_ranks; step++) {
        int other = (rank + step) % n_ranks;
        to_receive[other] = n_bytes;
        to_send[other] = move(other, 1, data, n_bytes);
    }
    for (;;) {
        struct pollfd polled[MAX_RANKS];
        int n_polled = 0, who[MAX_RANKS];
        for (int other = 0; other < n_ranks; other++) {
            int wanted = (to_receive[other] ? POLLIN : 0) | (to_send[other] ? POLLOUT : 0);
            if (wanted) {
                who[n_polled] = other;
                polled[n_polled++] = (struct pollfd){.fd = sockets[other], .events = (short)wanted};
            }
        }
        if (!n_polled)
            return;
        poll(polled, (nfds_t)n_polled, -1);
        for (int i = 0; i < n_polled; i++) {
            int other = who[i];
            if (polled[i].revents & ~POLLOUT && to_receive[other])
                to_receive[other] = move(other, 0, data, to_receive[other]);
            if (polled[i].revents & POLLOUT && to_send[other])
                to_send[other] = move(other, 1, data, to_send[other]);
        }
    }
}

int main(int count, char **arguments)
{
    if (count < 7 || (n_ranks = atoi(arguments[2])) < 2 || n_ranks > MAX_RANKS || count != 6 + n_ranks) {
        fprintf(stderr, "usage: swap RANK N BYTES GAP_MS ROUNDS ADDRESS ... ADDRESS\n");
        return 2;
    }
    rank = atoi(arguments[1]);
    long n_bytes = atol(arguments[3]), gap_ms = atol(arguments[4]), n_rounds = atol(arguments[5]);
    char *data = calloc(1, (size_t)n_bytes);
    if (!data || rank < 0 || rank >= n_ranks || n_bytes < 1 || gap_ms < 1)
        fail("cannot begin");
    connect_all(arguments + 6);
    for (long turn = 0; turn < n_rounds; turn++) {
        double now_s = read_clock(CLOCK_MONOTONIC), gap_s = (double)gap_ms / 1e3;
        double wait_s = (double)((long)(now_s / gap_s) + 1) * gap_s - now_s;
        struct timespec wait = {(time_t)wait_s, (long)((wait_s - (double)(time_t)wait_s) * 1e9)};
        nanosleep(&wait, NULL);
        double cpu_s = read_clock(CLOCK_PROCESS_CPUTIME_ID), began_s = read_clock(CLOCK_MONOTONIC);
        swap(data, n_bytes);
        double ended_s = read_clock(CLOCK_MONOTONIC);
        printf("%.9f %.9f %.9f\n", began_s, ended_s, read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu_s);
    }
    return 0;
}
