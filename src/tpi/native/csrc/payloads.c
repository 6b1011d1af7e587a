/* The arithmetic of payloads, in steps that stay in the cache. What cluster/allreduce/arithmetic.py does. */

#include "exchange.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { SCRATCH = 2048 };

static int is_within(const float *values, int64_t n, float largest)
{
    int outside = 0;
    for (int64_t i = 0; i < n; i++)
        outside |= !(fabsf(values[i]) <= largest);
    return !outside;
}

EXPORT int payload_is_within(const float *values, int64_t n, float largest)
{
    for (int64_t first = 0; first < n; first += SCRATCH)
        if (!is_within(values + first, n - first < SCRATCH ? n - first : SCRATCH, largest))
            return 0;
    return 1;
}

uint32_t encoded_bytes(int type, int64_t n)
{
    return (uint32_t)(type == F16 ? 2 * n : type == INT8 ? (n + 31) / 32 * 34 : 4 * n);
}

/* Makes a frame with the values. */
EXPORT void payload_put(const conversions *convert, uint8_t *frame, const uint8_t *key, int type, const float *values,
                        int64_t n)
{
    uint32_t length = encoded_bytes(type, n);
    memcpy(frame, key, KEY);
    write_number(frame + LENGTH_AT, length, 4);
    frame[TYPE_AT] = (uint8_t)type;
    memset(frame + TYPE_AT + 1, 0, HEADER - TYPE_AT - 1);
    if (type == F16)
        convert->to_f16(values, (uint16_t *)(frame + HEADER), n);
    else if (type == INT8)
        convert->to_int8(values, frame + HEADER, n);
    else
        memcpy(frame + HEADER, values, (size_t)length);
}

static void get(const conversions *convert, const uint8_t *frame, float *out, int64_t first, int64_t n)
{
    const uint8_t *data = frame + HEADER;
    if (frame[TYPE_AT] == F16)
        convert->from_f16((const uint16_t *)data + first, out, n);
    else if (frame[TYPE_AT] == INT8)
        convert->from_int8(data + first / 32 * 34, out, n);
    else
        memcpy(out, data + 4 * first, (size_t)(4 * n));
}

/* Whether a frame holds n values. */
int is_payload(const uint8_t *frame, int64_t n)
{
    int type = frame[TYPE_AT];
    return (type == F32 || type == F16 || type == INT8) && number_at(frame + LENGTH_AT, 4) == encoded_bytes(type, n);
}

EXPORT void payload_get(const conversions *convert, const uint8_t *frame, float *out, int64_t n)
{
    get(convert, frame, out, 0, n);
}

/* Adds the frames' n values in their order into out, to what it holds if there is more. Returns -1, or the number of
 * the first frame after which the sum is not finite; n_frames more if that frame itself is finite. One that does not
 * hold n values: -2 - its number. */
EXPORT int payload_add(const conversions *convert, const uint8_t *const *frames, int n_frames, int is_more, float *out,
                       int64_t n)
{
    float scratch[SCRATCH];
    int faulty = -1, is_own = 0;
    for (int f = 0; f < n_frames; f++)
        if (!is_payload(frames[f], n))
            return -2 - f;
    for (int64_t first = 0; first < n; first += SCRATCH) {
        int64_t size = n - first < SCRATCH ? n - first : SCRATCH;
        for (int f = 0; f < n_frames; f++) {
            int adds = f || is_more;
            get(convert, frames[f], adds ? scratch : out + first, first, size);
            if (adds)
                for (int64_t i = 0; i < size; i++)
                    out[first + i] += scratch[i];
            if (!is_within(out + first, size, FLT_MAX)) {
                int is_frame = !adds || !is_within(scratch, size, FLT_MAX);
                if (faulty < 0 || f < faulty || (f == faulty && is_frame && !is_own)) {
                    faulty = f;
                    is_own = is_frame;
                }
                break;
            }
        }
    }
    return faulty < 0 ? -1 : is_own ? faulty : faulty + n_frames;
}
