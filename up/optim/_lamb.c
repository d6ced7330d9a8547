/* A step of LAMB over many tensors in float32, in two passes over memory: the first updates the moments and measures the weights
 * and the direction, the second repeats the direction from the moments and moves the weights.
 *
 * Optional: `up/optim/lamb_native.py` compares it with the formula when it is first used. Build with -ffp-contract=off and
 * -fno-math-errno: the numbers are then the same on every processor, and square roots become vectors.
 *
 * Sums are in a fixed order, by pieces of PIECE elements, so that no number depends on the threads. These are torch's own, by the
 * OpenMP that torch has loaded: threads beside them would wait for cores on which torch's still spin after their last work.
 */
#define _GNU_SOURCE  /* RTLD_DEFAULT */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../_wide.h"

enum { PIECE = 16384 };  /* elements that one thread takes at once */
enum { WHOLE = 8 * PIECE };  /* elements of a tensor that one thread takes through both passes, since its cache keeps them */
enum { BLOCK = 1024 };  /* elements whose directions are kept at once */
enum { LANES = 16, ROWS = 4 };  /* sums beside each other; values that each takes at once */
enum { LEAST = 4 * PIECE };  /* elements for which threads pay */
enum { MEMORY = 5 };  /* integers of a tensor */

typedef struct {
    float *weight, *mean, *square;
    const float *grad;
    int64_t size, pieces, first;  /* `first` of the pieces of all tensors */
    float beta1, rest1, beta2, rest2, inverse1, inverse2, eps, decay, factor;
    double lr;
    float step_size;  /* lr times the trust ratio, once all pieces are measured */
    int is_adapted, is_capped;
    atomic_llong measured;  /* pieces */
    atomic_int is_ready;
} Tensor;

typedef struct {
    double weight, direction;
} Squares;

INLINED float direction(const Tensor *how, float mean, float square, float weight) {
    return mean * how->inverse1 / (sqrtf(square) * how->inverse2 + how->eps) + how->decay * weight;
}

INLINED double squares_of(const float *values) {
    float a = values[0], b = values[LANES], c = values[2 * LANES], d = values[3 * LANES];
    return (double)(a * a + b * b + (c * c + d * d));
}

INLINED void add_squares(const float *values, int64_t size, double *sums) {
    int64_t at = 0;
    float last[ROWS * LANES] = {0};
    for (; at + ROWS * LANES <= size; at += ROWS * LANES)
        for (int lane = 0; lane < LANES; lane++) sums[lane] += squares_of(values + at + lane);
    memcpy(last, values + at, (size_t)(size - at) * sizeof *values);
    for (int lane = 0; lane < LANES; lane++) sums[lane] += squares_of(last + lane);
}

INLINED double total(const double *sums) {
    double sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    return sum;
}

INLINED void moments_body(const Tensor *own, int64_t at, int64_t size, Squares *sums) {
    const Tensor how = *own; /* a copy, since stores to the moments might change what `own` points to */
    double weights[LANES] = {0}, directions[LANES] = {0};
    float made[BLOCK];
    for (int64_t end = at + size, run; at < end; at += run) {
        const float *restrict weight = how.weight + at, *restrict grad = how.grad + at;
        float *restrict mean = how.mean + at, *restrict square = how.square + at;
        run = end - at < BLOCK ? end - at : BLOCK;
        for (int64_t each = 0; each < run; each++) {
            float g = grad[each] * how.factor;
            float m = mean[each] = how.beta1 * mean[each] + how.rest1 * g;
            float v = square[each] = how.beta2 * square[each] + how.rest2 * g * g;
            made[each] = direction(&how, m, v, weight[each]);
        }
        add_squares(weight, run, weights);
        add_squares(made, run, directions);
    }
    sums->weight = total(weights);
    sums->direction = total(directions);
}

DEFINE(moments, (const Tensor *own, int64_t at, int64_t size, Squares *sums), (own, at, size, sums))

INLINED void move_body(const Tensor *own, int64_t at, int64_t size, float step_size) {
    const Tensor how = *own;
    float *restrict weight = how.weight + at;
    const float *restrict mean = how.mean + at, *restrict square = how.square + at;
    for (int64_t each = 0; each < size; each++) weight[each] -= step_size * direction(&how, mean[each], square[each], weight[each]);
}

DEFINE(move, (const Tensor *own, int64_t at, int64_t size, float step_size), (own, at, size, step_size))

/* Parts of a step in the order in which threads take them. */
typedef enum { BOTH, ALONE, FIRST, SECOND } Pass;  /* ALONE: a piece whose step needs no norm */

typedef struct {
    Tensor *own;
    int64_t piece;
    Pass pass;
} Job;

typedef struct {
    Job *jobs;
    int64_t number;
    Squares *sums;  /* of each piece */
    atomic_llong next;
} Work;

static float step_size_of(const Tensor *own, const Squares *sums) {
    double weights = 0, directions = 0;
    for (int64_t piece = 0; piece < own->pieces; piece++) weights += sums[piece].weight, directions += sums[piece].direction;
    float of_weight = (float)sqrt(weights), of_direction = (float)sqrt(directions);
    float ratio = of_weight > 0 && of_direction > 0 ? of_weight / of_direction : 1.0f;
    if (own->is_capped && ratio > 1.0f) ratio = 1.0f;
    return (float)(own->lr * ratio);
}

static void measure_piece(Tensor *own, int64_t piece, Squares *sums) {
    int64_t at = piece * PIECE, rest = own->size - at;
    moments(own, at, rest < PIECE ? rest : PIECE, sums + piece);
}

static void move_piece(Tensor *own, int64_t piece, float step_size) {
    int64_t at = piece * PIECE, rest = own->size - at;
    move(own, at, rest < PIECE ? rest : PIECE, step_size);
}

static void do_job(const Job *job, Squares *all) {
    Tensor *own = job->own;
    Squares *sums = all + own->first;
    switch (job->pass) {
    case BOTH:
        for (int64_t piece = 0; piece < own->pieces; piece++) measure_piece(own, piece, sums);
        own->step_size = step_size_of(own, sums);
        for (int64_t piece = own->pieces; piece-- > 0;) move_piece(own, piece, own->step_size);
        break;
    case ALONE:
        measure_piece(own, job->piece, sums);
        move_piece(own, job->piece, (float)own->lr);
        break;
    case FIRST:
        measure_piece(own, job->piece, sums);
        if (atomic_fetch_add(&own->measured, 1) == own->pieces - 1) {
            own->step_size = step_size_of(own, sums);
            atomic_store(&own->is_ready, 1);
        }
        break;
    case SECOND:
        while (!atomic_load(&own->is_ready)) sched_yield();  /* other threads are in the last pieces of the first pass */
        move_piece(own, job->piece, own->step_size);
    }
}

static void work_on(void *given) {
    Work *work = given;
    for (int64_t at; (at = atomic_fetch_add(&work->next, 1)) < work->number;) do_job(work->jobs + at, work->sums);
}

/* GOMP_parallel: call `run` in each thread of a team. */
static void (*in_parallel)(void (*run)(void *), void *data, unsigned threads, unsigned flags);

/* Append the jobs of a tensor; return their number. */
static int64_t plan(Tensor *own, Job *jobs) {
    int64_t number = 0;
    if (!own->is_adapted)
        for (int64_t piece = 0; piece < own->pieces; piece++) jobs[number++] = (Job){own, piece, ALONE};
    else if (own->size <= WHOLE) jobs[number++] = (Job){own, 0, BOTH};
    else {
        for (int64_t piece = 0; piece < own->pieces; piece++) jobs[number++] = (Job){own, piece, FIRST};
        /* from the last one, which is still in caches */
        for (int64_t piece = own->pieces; piece-- > 0;) jobs[number++] = (Job){own, piece, SECOND};
    }
    return number;
}

/* A row of `memory`: addresses of the weights, gradients, means and squares, and the number of elements. */
static void fill(Tensor *own, const int64_t *memory, const double *corrections, const Tensor *group, int64_t first) {
    *own = *group;
    own->weight = (float *)(intptr_t)memory[0];
    own->grad = (const float *)(intptr_t)memory[1];
    own->mean = (float *)(intptr_t)memory[2];
    own->square = (float *)(intptr_t)memory[3];
    own->size = memory[4];
    own->pieces = (own->size + PIECE - 1) / PIECE;
    own->first = first;
    own->inverse1 = (float)(1 / corrections[0]);
    own->inverse2 = (float)(1 / sqrt(corrections[1]));
    atomic_init(&own->measured, 0);
    atomic_init(&own->is_ready, 0);
}

/* Step all tensors; 0: no memory. */
static int step(const Tensor *group, const int64_t *memory, const double *corrections, int64_t count, int threads) {
    Work work = {0};
    int64_t pieces = 0, elements = 0;
    Tensor *tensors = malloc(sizeof *tensors * (count + 1));
    for (int64_t at = 0; at < count && tensors; at++) {
        fill(tensors + at, memory + at * MEMORY, corrections + at * 2, group, pieces);
        pieces += tensors[at].pieces;
        elements += tensors[at].size;
    }
    work.jobs = malloc(sizeof *work.jobs * (2 * pieces + count + 1));
    work.sums = malloc(sizeof *work.sums * (pieces + 1));
    const int has_memory = tensors && work.jobs && work.sums;
    if (has_memory) {
        for (int64_t at = 0; at < count; at++) work.number += plan(tensors + at, work.jobs + work.number);
        /* all of torch's threads or none: the others of a smaller team would end */
        if (threads > 1 && elements >= LEAST) in_parallel(work_on, &work, (unsigned)threads, 0);
        else work_on(&work);
    }
    free(work.sums);
    free(work.jobs);
    free(tensors);
    return has_memory;
}

static PyObject *py_step(PyObject *self, PyObject *args) {
    Py_buffer memory, corrections;
    Tensor group = {0};
    double beta1, beta2, divisor;
    int threads, has_memory = 0;
    if (!PyArg_ParseTuple(
            args, "y*y*d(dd)ffdppi", &memory, &corrections, &group.lr, &beta1, &beta2, &group.eps, &group.decay, &divisor,
            &group.is_adapted, &group.is_capped, &threads
        ))
        return NULL;
    const int64_t row = MEMORY * sizeof(int64_t), count = memory.len / row;
    const int fits = memory.len == count * row && corrections.len == count * (int64_t)(2 * sizeof(double));
    group.beta1 = (float)beta1, group.rest1 = (float)(1 - beta1);
    group.beta2 = (float)beta2, group.rest2 = (float)(1 - beta2);
    group.factor = (float)(1 / divisor);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        has_memory = step(&group, memory.buf, corrections.buf, count, threads);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&memory);
    PyBuffer_Release(&corrections);
    if (!fits) return PyErr_Format(PyExc_ValueError, "expected %d integers and 2 corrections of each tensor", MEMORY);
    if (!has_memory) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"step", py_step, METH_VARARGS, "step(memory, corrections, lr, betas, eps, decay, divisor, is_adapted, is_capped, threads)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_lamb", "A step of LAMB.", -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lamb(void) {
    *(void **)&in_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (in_parallel == NULL) {
        PyErr_SetString(PyExc_ImportError, "there is no GOMP_parallel, which torch's OpenMP has on Linux");
        return NULL;
    }

#if defined(__x86_64__) && defined(__GNUC__)
    has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return PyModule_Create(&MODULE);
}
