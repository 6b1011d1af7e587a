/* A whole pass over resident weights, block after block: what runtime/rank.py does, for passes of a few tokens. */

#include "exchange.h"

#include <float.h>
#include <string.h>

typedef struct {
    /* The block; graph NULL: this rank holds nothing of it. */
    void *graph, *plan;
    void ***places; /* where the graph's addresses are written, */
    void **values;  /* and what they are for this layer */
    float *partial; /* the graph's result */
    /* What follows it; sum NULL: nothing travels. */
    phased_sum *sum;
    float *total; /* NULL: this rank does not need the sum */
    int64_t n;
    int32_t n_places, block, is_last, is_handed_over, hands_over;
    int32_t is_kept; /* the sum stays where it is, for the turn after it, */
    int32_t is_own;  /* which makes the residual stream of it */
    int32_t format;
    float largest;
} turn;

typedef struct {
    int (*compute)(void *graph, void *plan);
    float *residual;
    const turn *turns;
    double *times; /* NULL, or for each turn when computing began and ended, and its sum was there */
    int32_t n_turns, at, stage, doing, status;
    int64_t n_sums;
    double compute_s, sum_s;
} program;

enum { COMPUTE_FAILED = 6 };
enum { IDLE, COMPUTING, SUMMING };

static int compute_turn(program *p, const turn *t)
{
    for (int i = 0; i < t->n_places; i++)
        *t->places[i] = t->values[i];
    p->status = p->compute(t->graph, t->plan);
    if (p->status)
        return COMPUTE_FAILED;
    if (t->hands_over)
        for (int64_t i = 0; i < t->n; i++)
            t->partial[i] += p->residual[i];
    return DONE;
}

static void add_total(program *p, const turn *t)
{
    if (t->is_kept)
        return;
    if (t->is_handed_over)
        memcpy(p->residual, t->total, (size_t)t->n * sizeof(float));
    else
        for (int64_t i = 0; i < t->n; i++)
            p->residual[i] += t->total[i];
}

/* Goes on from where it was; the first time from its first turn. Returns as sum_finish, or COMPUTE_FAILED. */
EXPORT int program_run(program *p, uint64_t pass)
{
    int result;
    for (; p->at < p->n_turns; p->at++, p->stage = 0) {
        const turn *t = &p->turns[p->at];
        double *times = p->times ? p->times + 3 * p->at : NULL, began = now_s(), computed = began;
        if (p->stage == 0) {
            if (t->graph) {
                p->doing = COMPUTING;
                if ((result = compute_turn(p, t)))
                    return result;
                computed = now_s();
                p->compute_s += computed - began;
            }
            if (times) {
                times[0] = began;
                times[1] = computed;
            }
            if (t->is_last)
                continue;
            p->doing = SUMMING;
            p->n_sums++;
            p->stage = 1;
            if (!t->sum) {
                if (!payload_is_within(t->partial, t->n, FLT_MAX))
                    return FAULTY;
                if (t->is_kept || t->is_own)
                    memcpy(t->is_kept ? t->total : p->residual, t->partial, (size_t)t->n * sizeof(float));
                else
                    for (int64_t i = 0; i < t->n; i++)
                        p->residual[i] += t->partial[i];
                continue;
            }
            result = sum_start(t->sum, pass, (uint32_t)t->block, t->format, t->largest, t->graph ? t->partial : NULL,
                               t->total, t->n);
            if (result)
                return result;
        }
        result = sum_finish(t->sum, -1);
        if (!result && t->total)
            add_total(p, t);
        double summed = now_s();
        p->sum_s += summed - computed;
        if (times)
            times[2] = summed;
        if (result)
            return result;
    }
    p->at = p->stage = 0;
    p->doing = IDLE;
    return DONE;
}
