/* Two things that emulated devices need and that Python is too slow or too late for:
 *
 *   switch run            makes the devices' network namespaces and carries packets between them
 *   switch enter NS [CGROUP.PROCS ...] -- COMMAND ...
 *                         runs COMMAND inside a namespace and cgroups; it ends with its parent
 *
 * "run" reads its settings from standard input:
 *
 *   N CONGESTION_CONTROL[,ANOTHER]
 *   MEDIUM_BYTES_PER_S JITTER_NANOSECONDS     0 BYTES_PER_S: no medium, every device has a port of its own
 *   ADDRESS BYTES_PER_SECOND                  N times: a device's address (of a /24) and the rate of its port
 *   NANOSECONDS ... NANOSECONDS               N times N: one-way latency from the line's device to the column's
 *
 * answers "ready REALTIME CONGESTION_CONTROL FD ... FD" (1 if it runs in real time; what was chosen; its descriptors of
 * the namespaces, to be entered through /proc/PID/fd/FD), then takes one byte commands: "s" prints statistics as a line
 * of JSON, "r" zeroes them. It ends when its standard input does, and with it end the namespaces that nobody is in.
 *
 * The model is a switch with full duplex ports. A packet leaves its device's port after those before it, at the port's
 * rate; its first bit arrives one latency later and goes through the receiver's port at that port's rate, after those
 * that came before it from anybody. It is handed over when its last bit is through. Nothing is ever dropped. Rates
 * count IP packets as they would be on the wire: packets that the kernel leaves to be segmented (up to 64 KB) count
 * with a header per segment.
 *
 * With a medium the devices are stations of one radio cell instead: one packet at a time is in the air, whoever sends it,
 * and takes its bytes at the medium's rate; who waits to send takes turns; there are no ports beside it. Jitter delays or
 * hastens each packet by up to so much, evenly spread; packets of a pair do not overtake each other.
 *
 * One thread, in real time if it may.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_DEVICES = 16,
    MTU = 1500,
    QUEUE_PACKETS = 10000,
    SMALL = 2048,
    LARGE = sizeof(struct virtio_net_hdr) + 65536,
    READS_PER_ROUND = 16,
    BUCKETS = 4096,
    BUCKET_NS = 5000,
};

/* A device's packets wait in its own queue rather than here while its port has so much to do. */
static const int64_t AHEAD_NS = 2000000;

/* The last moments before a packet is due are spent looking at the clock: sleeping would end late. */
static const int64_t SPIN_NS = 20000;

struct packet {
    struct packet *next;
    int64_t arrival; /* of the first bit at the receiver's port */
    int64_t sent;    /* arrival of the last bit, if the receiver's port were infinitely fast */
    int64_t due;
    int64_t wire_bytes;
    int length;
    int is_large;
    unsigned char data[];
};

struct queue {
    struct packet *first, *last;
};

struct device {
    int tun, ns;
    uint32_t address;
    double ns_per_byte;
    int64_t out_free, in_free;
    int64_t min_latency;         /* to here, from anybody */
    struct queue arriving[MAX_DEVICES]; /* by sender */
    struct packet *serving;
    int64_t sent_bytes, received_bytes, sent_packets, received_packets;
};

static int n_devices;
static char congestion_control[16];
static struct device devices[MAX_DEVICES];
static int64_t latencies[MAX_DEVICES][MAX_DEVICES], last_arrivals[MAX_DEVICES][MAX_DEVICES];
static double medium_ns_per_byte; /* 0: there is none */
static int64_t medium_free, jitter;
static struct packet *unused[2];
static int64_t late_max, n_delivered, late_buckets[BUCKETS];

static void fail(const char *format, ...)
{
    int error = errno;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, ": %s\n", strerror(error));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Making devices. */

static void change_flags(int control, struct ifreq *request)
{
    if (ioctl(control, SIOCGIFFLAGS, request) < 0)
        fail("cannot read the flags of %s", request->ifr_name);
    request->ifr_flags |= IFF_UP | IFF_RUNNING;
    if (ioctl(control, SIOCSIFFLAGS, request) < 0)
        fail("cannot bring %s up", request->ifr_name);
}

static void set_address(int control, struct ifreq *request, unsigned long what, uint32_t address)
{
    struct sockaddr_in *place = (struct sockaddr_in *)&request->ifr_addr;
    memset(place, 0, sizeof *place);
    place->sin_family = AF_INET;
    place->sin_addr.s_addr = address;
    if (ioctl(control, what, request) < 0)
        fail("cannot give %s an address", request->ifr_name);
}

/* Tries the names in the comma-separated list in turn: a namespace may only use what the host allows everybody. */
static void set_congestion_control(const char *names)
{
    const char *path = "/proc/sys/net/ipv4/tcp_congestion_control";
    while (*names) {
        size_t length = strcspn(names, ",");
        int file = open(path, O_WRONLY | O_CLOEXEC);
        int is_set = file >= 0 && write(file, names, length) == (ssize_t)length;
        close(file);
        if (is_set) {
            snprintf(congestion_control, sizeof congestion_control, "%.*s", (int)length, names);
            return;
        }
        names += length + (names[length] == ',');
    }
    fail("cannot choose a congestion control");
}

static void make_device(struct device *device, const char *congestion_controls)
{
    struct ifreq request = {0};
    if (unshare(CLONE_NEWNET) < 0)
        fail("cannot make a network namespace");
    device->ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    device->tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (device->ns < 0 || device->tun < 0 || control < 0)
        fail("cannot open /dev/net/tun");
    strcpy(request.ifr_name, "tpi0");
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(device->tun, TUNSETIFF, &request) < 0)
        fail("cannot make a TUN device");
    if (ioctl(device->tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0)
        fail("cannot leave segmenting to the receiver");
    request.ifr_qlen = QUEUE_PACKETS;
    if (ioctl(control, SIOCSIFTXQLEN, &request) < 0)
        fail("cannot set the queue of %s", request.ifr_name);
    request.ifr_mtu = MTU;
    if (ioctl(control, SIOCSIFMTU, &request) < 0)
        fail("cannot set the MTU of %s", request.ifr_name);
    set_address(control, &request, SIOCSIFADDR, device->address);
    set_address(control, &request, SIOCSIFNETMASK, htonl(0xFFFFFF00));
    change_flags(control, &request);
    struct ifreq loopback = {.ifr_name = "lo"};
    change_flags(control, &loopback);
    close(control);
    set_congestion_control(congestion_controls);
}

static void read_settings(char *congestion_controls)
{
    if (scanf("%d %63s", &n_devices, congestion_controls) != 2 || n_devices < 1 || n_devices > MAX_DEVICES) {
        fprintf(stderr, "settings: 1 to %d devices are possible\n", MAX_DEVICES);
        exit(1);
    }
    double medium_bytes_per_s;
    long long jitter_ns;
    if (scanf("%lf %lld", &medium_bytes_per_s, &jitter_ns) != 2 || medium_bytes_per_s < 0 || jitter_ns < 0) {
        fprintf(stderr, "settings: no medium's rate and jitter\n");
        exit(1);
    }
    medium_ns_per_byte = medium_bytes_per_s > 0 ? 1e9 / medium_bytes_per_s : 0;
    jitter = jitter_ns;
    for (int i = 0; i < n_devices; i++) {
        char text[INET_ADDRSTRLEN];
        double bytes_per_s;
        struct in_addr address;
        if (scanf("%15s %lf", text, &bytes_per_s) != 2 || inet_aton(text, &address) == 0 || bytes_per_s <= 0) {
            fprintf(stderr, "settings: device %d has no address or no rate\n", i);
            exit(1);
        }
        devices[i].address = address.s_addr;
        devices[i].ns_per_byte = 1e9 / bytes_per_s;
    }
    for (int i = 0; i < n_devices; i++)
        for (int j = 0; j < n_devices; j++) {
            long long latency;
            if (scanf("%lld", &latency) != 1 || latency < 0) {
                fprintf(stderr, "settings: no latency from %d to %d\n", i, j);
                exit(1);
            }
            latencies[i][j] = latency;
            latency = latency > jitter ? latency - jitter : 0;
            if (i == 0 || latency < devices[j].min_latency)
                devices[j].min_latency = latency;
        }
}

/* Carrying packets. */

static struct packet *take_packet(int length)
{
    int is_large = length > SMALL;
    struct packet *packet = unused[is_large];
    if (packet)
        unused[is_large] = packet->next;
    else if (!(packet = malloc(sizeof *packet + (is_large ? LARGE : SMALL))))
        fail("no memory for packets");
    packet->is_large = is_large;
    packet->length = length;
    packet->next = NULL;
    return packet;
}

static void drop_packet(struct packet *packet)
{
    packet->next = unused[packet->is_large];
    unused[packet->is_large] = packet;
}

/* What the packet would be on the wire, after segmentation. */
static int64_t wire_bytes(const unsigned char *data, int length)
{
    struct virtio_net_hdr header;
    memcpy(&header, data, sizeof header);
    const unsigned char *ip = data + sizeof header;
    int n = length - (int)sizeof header;
    if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE || header.gso_size == 0)
        return n;
    int headers = (ip[0] & 15) * 4;
    if (headers + 13 > n)
        return n;
    headers += (ip[headers + 12] >> 4) * 4;
    int segments = (n - headers + header.gso_size - 1) / header.gso_size;
    return segments > 1 ? n + (int64_t)(segments - 1) * headers : n;
}

static struct device *receiver_of(const unsigned char *data, int length)
{
    const unsigned char *ip = data + sizeof(struct virtio_net_hdr);
    uint32_t to;
    if (length < (int)sizeof(struct virtio_net_hdr) + 20 || ip[0] >> 4 != 4)
        return NULL;
    memcpy(&to, ip + 16, sizeof to);
    for (int i = 0; i < n_devices; i++)
        if (devices[i].address == to)
            return &devices[i];
    return NULL;
}

/* When what a device sends next can begin to leave. */
static int64_t *free_of(struct device *device)
{
    return medium_ns_per_byte > 0 ? &medium_free : &device->out_free;
}

/* One way from here to there, this time. */
static int64_t latency_of(int sender, int receiver)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    if (jitter == 0)
        return latencies[sender][receiver];
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    int64_t latency = latencies[sender][receiver] - jitter + (int64_t)(state % (uint64_t)(2 * jitter + 1));
    return latency > 0 ? latency : 0;
}

/* Whether anything was taken. */
static int take_from(int sender, int64_t now)
{
    static unsigned char data[LARGE];
    struct device *from = &devices[sender];
    int64_t *free = free_of(from);
    double ns_per_byte = medium_ns_per_byte > 0 ? medium_ns_per_byte : from->ns_per_byte;
    int n_most = medium_ns_per_byte > 0 ? 1 : READS_PER_ROUND;
    int is_any = 0;
    for (int n = 0; n < n_most && *free - now < AHEAD_NS; n++) {
        int length = (int)read(from->tun, data, sizeof data);
        if (length <= 0)
            break;
        is_any = 1;
        struct device *to = receiver_of(data, length);
        if (!to)
            continue; /* IPv6 neighbour discovery and the like */
        struct packet *packet = take_packet(length);
        memcpy(packet->data, data, length);
        packet->wire_bytes = wire_bytes(data, length);
        int64_t start = *free > now ? *free : now;
        *free = start + (int64_t)(packet->wire_bytes * ns_per_byte);
        int64_t latency = latency_of(sender, to - devices);
        int64_t *last = &last_arrivals[sender][to - devices];
        packet->arrival = start + latency > *last ? start + latency : *last;
        packet->sent = packet->arrival + (*free - start);
        *last = packet->arrival;
        from->sent_bytes += packet->wire_bytes;
        from->sent_packets++;
        struct queue *queue = &to->arriving[sender];
        if (queue->first)
            queue->last->next = packet;
        else
            queue->first = packet;
        queue->last = packet;
    }
    return is_any;
}

static void take_from_all(int64_t now)
{
    static int first;
    if (medium_ns_per_byte == 0) {
        for (int i = 0; i < n_devices; i++)
            take_from(i, now);
        return;
    }
    for (int n_idle = 0; n_idle < n_devices && medium_free - now < AHEAD_NS; first = (first + 1) % n_devices)
        n_idle = take_from(first, now) ? 0 : n_idle + 1;
}

static void deliver(struct device *to, int64_t now)
{
    struct packet *packet = to->serving;
    int64_t late = now - packet->due;
    late_max = late > late_max ? late : late_max;
    late_buckets[late / BUCKET_NS < BUCKETS ? late / BUCKET_NS : BUCKETS - 1]++;
    n_delivered++;
    if (write(to->tun, packet->data, packet->length) < 0 && errno != EIO && errno != EINVAL)
        fail("cannot hand a packet over");
    to->received_bytes += packet->wire_bytes;
    to->received_packets++;
    to->serving = NULL;
    drop_packet(packet);
}

/* Hands over what is due; returns when to look again. */
static int64_t serve(struct device *to, int64_t now)
{
    for (;;) {
        if (to->serving) {
            if (to->serving->due > now)
                return to->serving->due;
            deliver(to, now);
        }
        struct queue *first = NULL;
        for (int i = 0; i < n_devices; i++)
            if (to->arriving[i].first && (!first || to->arriving[i].first->arrival < first->first->arrival))
                first = &to->arriving[i];
        if (!first)
            return INT64_MAX;
        struct packet *packet = first->first;
        /* Nothing that is sent from now on can arrive before this. */
        if (packet->arrival > now + to->min_latency)
            return packet->arrival - to->min_latency;
        first->first = packet->next;
        int64_t start = packet->arrival > to->in_free || medium_ns_per_byte > 0 ? packet->arrival : to->in_free;
        packet->due = medium_ns_per_byte > 0 ? start : start + (int64_t)(packet->wire_bytes * to->ns_per_byte);
        packet->due = packet->due > packet->sent ? packet->due : packet->sent;
        to->in_free = packet->due;
        to->serving = packet;
    }
}

static double late_us(double part)
{
    int64_t below = 0;
    for (int i = 0; i < BUCKETS; i++)
        if ((below += late_buckets[i]) >= part * n_delivered)
            return (i + 1) * (BUCKET_NS / 1e3);
    return 0;
}

static void print_statistics(void)
{
    printf("{\"late_p50_s\": %.6f, \"late_p99_s\": %.6f, \"late_max_s\": %.6f, \"devices\": [",
           late_us(0.5) / 1e6, late_us(0.99) / 1e6, late_max / 1e9);
    for (int i = 0; i < n_devices; i++)
        printf("%s{\"sent_bytes\": %lld, \"received_bytes\": %lld, \"sent_packets\": %lld, \"received_packets\": %lld}",
               i ? ", " : "", (long long)devices[i].sent_bytes, (long long)devices[i].received_bytes,
               (long long)devices[i].sent_packets, (long long)devices[i].received_packets);
    printf("]}\n");
    fflush(stdout);
}

static void zero_statistics(void)
{
    for (int i = 0; i < n_devices; i++) {
        devices[i].sent_bytes = devices[i].received_bytes = 0;
        devices[i].sent_packets = devices[i].received_packets = 0;
    }
    memset(late_buckets, 0, sizeof late_buckets);
    late_max = n_delivered = 0;
}

static int obey(void)
{
    char command;
    ssize_t n = read(STDIN_FILENO, &command, 1);
    if (n <= 0)
        return 0;
    if (command == 's')
        print_statistics();
    else if (command == 'r')
        zero_statistics();
    return 1;
}

static void carry(void)
{
    struct pollfd polled[MAX_DEVICES + 1];
    for (;;) {
        int64_t next = INT64_MAX, now = now_ns();
        take_from_all(now);
        for (int i = 0; i < n_devices; i++) {
            int64_t again = serve(&devices[i], now_ns());
            next = again < next ? again : next;
        }
        now = now_ns();
        for (int i = 0; i < n_devices; i++) {
            int64_t ready = *free_of(&devices[i]) - AHEAD_NS;
            polled[i] = (struct pollfd){.fd = ready < now ? devices[i].tun : -1, .events = POLLIN};
            if (ready >= now && ready + 1 < next)
                next = ready + 1;
        }
        polled[n_devices] = (struct pollfd){.fd = STDIN_FILENO, .events = POLLIN};
        int64_t left = next == INT64_MAX ? 1000000000 : next - now - SPIN_NS;
        struct timespec sleep = {0};
        if (left > 0)
            sleep = (struct timespec){.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
        if (ppoll(polled, n_devices + 1, &sleep, NULL) < 0 && errno != EINTR)
            fail("cannot wait for packets");
        if (polled[n_devices].revents && !obey())
            return;
    }
}

static int run(void)
{
    char congestion_controls[64];
    setvbuf(stdin, NULL, _IONBF, 0); /* what follows the settings is for obey() */
    read_settings(congestion_controls);
    for (int i = 0; i < n_devices; i++)
        make_device(&devices[i], congestion_controls);
    struct sched_param priority = {.sched_priority = 50};
    int is_realtime = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    if (!is_realtime)
        prctl(PR_SET_TIMERSLACK, 1);
    mlockall(MCL_CURRENT | MCL_FUTURE);
    printf("ready %d %s", is_realtime, congestion_control);
    for (int i = 0; i < n_devices; i++)
        printf(" %d", devices[i].ns);
    printf("\n");
    fflush(stdout);
    carry();
    return 0;
}

static int enter(char **arguments)
{
    pid_t parent = getppid();
    int ns = open(arguments[0], O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET) < 0)
        fail("cannot enter the namespace %s", arguments[0]);
    for (arguments++; *arguments && strcmp(*arguments, "--") != 0; arguments++) {
        int file = open(*arguments, O_WRONLY | O_CLOEXEC);
        if (file < 0 || write(file, "0", 1) != 1)
            fail("cannot enter the cgroup %s", *arguments);
        close(file);
    }
    if (!*arguments || !arguments[1]) {
        fprintf(stderr, "no command\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return 1;
    execvp(arguments[1], arguments + 1);
    fail("cannot run %s", arguments[1]);
    return 1;
}

int main(int count, char **arguments)
{
    if (count == 2 && strcmp(arguments[1], "run") == 0)
        return run();
    if (count > 3 && strcmp(arguments[1], "enter") == 0)
        return enter(arguments + 2);
    fprintf(stderr, "usage: switch run | switch enter NAMESPACE [CGROUP.PROCS ...] -- COMMAND ...\n");
    return 2;
}
