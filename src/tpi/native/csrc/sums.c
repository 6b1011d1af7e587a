/* A whole sum of two phases: what cluster/allreduce/phases.py does, for sums that one thread carries through. */

#include "exchange.h"

#include <string.h>

enum { NO_RANK = -1, NO_FAULT = -2 };
enum { WAITING_FOR_CONTRIBUTIONS, WAITING_FOR_TOTALS, FINISHED };
enum { PHASE_PARTIAL = 2, PHASE_TOTAL = 3 };

static void write_key(uint8_t *key, int phase, const phased_sum *s, uint64_t pass, uint32_t block)
{
    memcpy(key, "tpiF\2", 5);
    key[5] = (uint8_t)phase;
    key[6] = (uint8_t)s->part;
    key[7] = 0;
    write_number(key + 8, s->epoch, 4);
    write_number(key + 12, block, 4);
    write_number(key + 16, pass, 8);
}

static int64_t slice_start(const phased_sum *s, int number)
{
    int64_t n_blocks = (s->n + 31) / 32;
    int64_t start = (n_blocks * number + s->n_slices - 1) / s->n_slices * 32;
    return start < s->n ? start : s->n;
}

static int64_t slice_size(const phased_sum *s, int number)
{
    return slice_start(s, number + 1) - slice_start(s, number);
}

static int type_of(const phased_sum *s, const float *values, int64_t n)
{
    return payload_is_within(values, n, s->largest) ? s->format : F32;
}

/* Sends what can be sent. format is a payload_type; largest what it can hold. */
EXPORT int sum_start(phased_sum *s, uint64_t pass, uint32_t block, int format, float largest, const float *partial,
                     float *out, int64_t n)
{
    int result;
    s->format = format;
    s->largest = largest;
    s->out = out;
    s->n = n;
    s->added = s->shared = 0;
    s->fault = NO_FAULT;
    write_key(s->partial_key, PHASE_PARTIAL, s, pass, block);
    write_key(s->total_key, PHASE_TOTAL, s, pass, block);
    if (partial) {
        int type = type_of(s, partial, n);
        for (int i = 0; i < s->n_slices; i++)
            if (s->slices[i])
                payload_put(s->convert, s->slices[i], s->partial_key, type, partial + slice_start(s, i),
                            slice_size(s, i));
        for (int i = 0; i < s->n_sendings; i++)
            if (slice_size(s, s->sending_slices[i]) &&
                (result = exchange_send(s->mesh, s->sending_links + i, 1, s->slices[s->sending_slices[i]], &s->shared)))
                return result;
    }
    for (int i = 0; i < s->n_totals; i++)
        if (slice_size(s, s->total_slices[i]) &&
            (result = exchange_expect(s->mesh, s->total_links + i, 1, &s->slices[s->total_slices[i]],
                                      &s->slice_capacity, s->total_key, KEY, &s->shared)))
            return result;
    if (out && s->own_slice >= 0 && slice_size(s, s->own_slice)) {
        s->stage = WAITING_FOR_CONTRIBUTIONS;
        return exchange_expect(s->mesh, s->contribution_links, s->n_contributions, s->contribution_frames,
                               s->contribution_capacities, s->partial_key, KEY, &s->added);
    }
    s->stage = WAITING_FOR_TOTALS;
    return DONE;
}

static int add_contributions(phased_sum *s)
{
    float *own = s->out + slice_start(s, s->own_slice);
    int64_t size = slice_size(s, s->own_slice);
    int found = payload_add(s->convert, s->row, s->n_row, 0, own, size);
    if (found < -1) {
        s->fault = s->row_ranks[-2 - found];
        return WRONG_CONTRIBUTION;
    }
    if (found >= 0)
        s->fault = found < s->n_row ? s->row_ranks[found] : NO_RANK;
    if (!s->shares)
        return DONE;
    if (s->fault != NO_FAULT) {
        memcpy(s->total, s->total_key, KEY);
        write_number(s->total + LENGTH_AT, 8, 4);
        write_number(s->total + TYPE_AT, FAULT, 4);
        write_number(s->total + HEADER, (uint32_t)s->fault, 8);
    } else {
        payload_put(s->convert, s->total, s->total_key, type_of(s, own, size), own, size);
        payload_get(s->convert, s->total, own, size);
    }
    return exchange_send(s->mesh, s->to_all, s->n_to_all, s->total, &s->shared);
}

static int collect_totals(phased_sum *s)
{
    int fault = s->fault, at = s->fault == NO_FAULT ? s->n_slices : s->own_slice;
    for (int i = 0; i < s->n_totals; i++) {
        int number = s->total_slices[i];
        const uint8_t *frame = s->slices[number];
        if (slice_size(s, number) && frame[TYPE_AT] == FAULT && number < at) {
            at = number;
            fault = (int32_t)number_at(frame + HEADER, 4);
        }
    }
    if (fault != NO_FAULT) {
        s->fault = fault;
        return FAULTY;
    }
    for (int i = 0; i < s->n_totals; i++) {
        int number = s->total_slices[i];
        int64_t size = slice_size(s, number);
        if (!size)
            continue;
        if (!is_payload(s->slices[number], size)) {
            s->fault = number;
            return WRONG_TOTAL;
        }
        payload_get(s->convert, s->slices[number], s->out + slice_start(s, number), size);
    }
    return DONE;
}

/* Carries the sum through; TIMED_OUT: nothing has happened for so long, or a signal came: it is to be called again. */
EXPORT int sum_finish(phased_sum *s, int timeout_ms)
{
    int result;
    if (s->stage == WAITING_FOR_CONTRIBUTIONS) {
        if ((result = exchange_wait(s->mesh, &s->added, timeout_ms)) || (result = add_contributions(s)))
            return result;
        s->stage = WAITING_FOR_TOTALS;
    }
    if (s->stage == WAITING_FOR_TOTALS) {
        if ((result = exchange_wait(s->mesh, &s->shared, timeout_ms)))
            return result;
        s->stage = FINISHED;
        return s->out ? collect_totals(s) : DONE;
    }
    return DONE;
}
