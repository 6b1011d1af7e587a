/* What a sum over several devices spends its time with, without the interpreter. From the bottom up: frames over TLS
 * connections, both ways at once (mesh.c); the arithmetic of payloads (payloads.c); a whole sum of two phases (sums.c);
 * a whole pass of a few tokens over resident weights (program.c). The Python that does the same says what each thing
 * means: cluster/mesh/mesh.py, cluster/allreduce/arithmetic.py and phases.py, runtime/rank.py. One suite holds both.
 *
 * OpenSSL's functions and the kernels' conversions are handed in as pointers: this needs nothing but the C library. All
 * memory is the caller's, but for that of a mesh; nothing is allocated once that has been made. A mesh is used by one
 * thread at a time, but for exchange_sleep and exchange_stop.
 *
 * Frames begin with 32 bytes: a key of 24, the payload's length (u32), its type (u8), zeros (cluster/mesh/frames.py).
 */

#ifndef TPI_EXCHANGE_H
#define TPI_EXCHANGE_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define EXPORT __attribute__((visibility("default")))

enum { HEADER = 32, KEY = 24, LENGTH_AT = 24, TYPE_AT = 28 };
enum payload_type { F32, F16, FAULT, BYTES, INT8, NONE };

/* What waiting and moving return; of a link's error, link * 16 + 8 + which. */
enum { DONE, TIMED_OUT, STOPPED };
enum { CLOSED = 1, BROKEN, TOO_LARGE, OUT_OF_STEP, TOO_MANY, NO_FRAME };
/* What sums return besides: a rank is at fault, a frame of a contributor or of a slice is wrong. */
enum { FAULTY = 3, WRONG_CONTRIBUTION = 4, WRONG_TOTAL = 5 };

/* mesh.c */

typedef struct mesh mesh;

int exchange_send(mesh *m, const int32_t *links, int n, const uint8_t *frame, int32_t *exchange);
int exchange_expect(mesh *m, const int32_t *links, int n, uint8_t *const *frames, const uint32_t *capacities,
                    const uint8_t *key, int key_bytes, int32_t *exchange);
int exchange_wait(mesh *m, const int32_t *exchange, int timeout_ms);

/* payloads.c */

typedef struct {
    void (*to_f16)(const float *values, uint16_t *out, int64_t n);
    void (*from_f16)(const uint16_t *data, float *out, int64_t n);
    void (*to_int8)(const float *values, void *out, int64_t n);
    void (*from_int8)(const void *data, float *out, int64_t n);
} conversions;

uint32_t encoded_bytes(int type, int64_t n);
int payload_is_within(const float *values, int64_t n, float largest);
void payload_put(const conversions *convert, uint8_t *frame, const uint8_t *key, int type, const float *values,
                 int64_t n);
void payload_get(const conversions *convert, const uint8_t *frame, float *out, int64_t n);
int payload_add(const conversions *convert, const uint8_t *const *frames, int n_frames, int is_more, float *out,
                int64_t n);
int is_payload(const uint8_t *frame, int64_t n);

/* sums.c */

typedef struct {
    /* The route; the memory is Python's. */
    mesh *mesh;
    const conversions *convert;
    uint32_t epoch;
    int32_t part, n_slices, own_slice, shares;
    int32_t n_sendings, n_contributions, n_row, n_to_all, n_totals;
    uint8_t **slices; /* by number, NULL for those that this rank neither sends nor gets */
    const int32_t *sending_slices, *sending_links;
    const int32_t *contribution_links;
    uint8_t **contribution_frames;
    const uint32_t *contribution_capacities;
    const uint8_t **row;
    const int32_t *row_ranks;
    uint8_t *total;
    const int32_t *to_all;
    const int32_t *total_slices, *total_links;
    uint32_t slice_capacity;
    /* The sum that is under way. */
    int32_t stage, added, shared, format, fault;
    float largest; /* what the format can hold */
    float *out;
    int64_t n;
    uint8_t partial_key[KEY], total_key[KEY];
} phased_sum;

int sum_start(phased_sum *s, uint64_t pass, uint32_t block, int format, float largest, const float *partial, float *out,
              int64_t n);
int sum_finish(phased_sum *s, int timeout_ms);

/* Seconds of the machine's monotonic clock, as Python's time.monotonic. */

static inline double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Little-endian numbers in frames. */

static inline uint64_t number_at(const uint8_t *data, int n)
{
    uint64_t value = 0;
    for (int i = n - 1; i >= 0; i--)
        value = value << 8 | data[i];
    return value;
}

static inline void write_number(uint8_t *at, uint64_t value, int n)
{
    for (int i = 0; i < n; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

#endif
