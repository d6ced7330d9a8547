/* Antialiased resizing of 8-bit RGB images, equal in every bit to Pillow's `Image.resize`, in a third of its time.

   As Pillow does, it convolves along rows and across them with integer weights of 22 bits and rounds between the two passes. A part
   of the image is enough where it has all pixels that the wanted window of the result depends on. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define HAS_AVX2
#endif

#define BITS 22 /* precision of the weights */

typedef struct {
    int taps;             /* weights an output pixel */
    int *first, *count;   /* source pixels of each output pixel */
    int32_t *weights;     /* (outputs, taps) */
    int16_t *halves;      /* (outputs, quads, 2, 4): 15 low bits and the rest of four weights, for multiplication in 16 bits */
    int quads;
} Weights;

static double triangle(double x) { return fabs(x) < 1.0 ? 1.0 - fabs(x) : 0.0; }

static double cubic(double x) /* Keys 1981, a = -0.5 */
{
    x = fabs(x);
    if (x < 1.0)
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

static void release(Weights *weights)
{
    free(weights->first);
    free(weights->count);
    free(weights->weights);
    free(weights->halves);
}

static int split(Weights *made, int outputs)
{
    made->quads = (made->taps + 3) / 4;
    made->halves = calloc((size_t)outputs * made->quads * 8, sizeof(int16_t));
    for (int at = 0; at < outputs && made->halves != NULL; at++)
        for (int i = 0; i < made->taps; i++) {
            const int32_t weight = made->weights[(size_t)at * made->taps + i];
            int16_t *half = made->halves + ((size_t)at * made->quads + i / 4) * 8 + i % 4;
            half[0] = (int16_t)(weight & 0x7FFF);
            half[4] = (int16_t)(weight >> 15);
        }
    return made->halves != NULL;
}

/* Weights of the outputs `from` to `from + outputs` of an axis of `source` pixels that is resized to `target`. */
static int weigh(Weights *made, int source, int target, int from, int outputs, int is_cubic)
{
    double scale = (double)source / target, stretch = scale < 1.0 ? 1.0 : scale, support = (is_cubic ? 2.0 : 1.0) * stretch;
    double inverse = 1.0 / stretch;
    int taps = made->taps = (int)ceil(support) * 2 + 1;
    double *exact = calloc((size_t)taps, sizeof *exact);
    made->first = malloc(sizeof(int) * outputs);
    made->count = malloc(sizeof(int) * outputs);
    made->weights = malloc(sizeof(int32_t) * outputs * taps);
    if (exact == NULL || made->first == NULL || made->count == NULL || made->weights == NULL) {
        free(exact);
        return 0;
    }
    for (int at = 0; at < outputs; at++) {
        double centre = (at + from + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (source == target) /* no pass along this axis */
            first = at + from, last = first + 1;
        made->first[at] = first = first < 0 ? 0 : first;
        made->count[at] = (last > source ? source : last) - first;
        for (int i = 0; i < made->count[at]; i++) {
            double distance = (i + first - centre + 0.5) * inverse;
            exact[i] = is_cubic ? cubic(distance) : triangle(distance);
            sum += exact[i];
        }
        for (int i = 0; i < taps; i++) {
            double value = i < made->count[at] ? exact[i] / (sum != 0.0 ? sum : 1.0) * (1 << BITS) : 0.0;
            made->weights[(size_t)at * taps + i] = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
    }
    free(exact);
    return split(made, outputs);
}

static inline uint8_t level(int32_t sum)
{
    sum >>= BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* A row of `outputs` pixels of 3 channels from a row that starts with the source pixel `origin`. */
static void along_row(const uint8_t *row, int origin, const Weights *made, int outputs, uint8_t *out)
{
    for (int at = 0; at < outputs; at++, out += 3) {
        const uint8_t *pixel = row + (size_t)(made->first[at] - origin) * 3;
        const int32_t *weight = made->weights + (size_t)at * made->taps;
        int32_t red = 1 << (BITS - 1), green = red, blue = red;
        for (int i = 0; i < made->count[at]; i++, pixel += 3) {
            red += pixel[0] * weight[i];
            green += pixel[1] * weight[i];
            blue += pixel[2] * weight[i];
        }
        out[0] = level(red);
        out[1] = level(green);
        out[2] = level(blue);
    }
}

/* A row of `bytes` from `count` rows, `stride` bytes apart; continues at byte `at`. */
static void across_rows(const uint8_t *rows, size_t stride, size_t at, size_t bytes, const int32_t *weight, int count, uint8_t *out)
{
    for (; at < bytes; at++) {
        int32_t sum = 1 << (BITS - 1);
        for (int i = 0; i < count; i++)
            sum += rows[(size_t)i * stride + at] * weight[i];
        out[at] = level(sum);
    }
}

#ifdef HAS_AVX2
#define OVERREAD 16 /* bytes after the last pixel */

/* Store a pixel of 16-bit levels, and unless it is the last of its row a byte that the next one overwrites: one instruction. */
__attribute__((target("avx2"))) static inline void store(__m128i wide, int is_last, uint8_t *out)
{
    const int levels = _mm_cvtsi128_si32(_mm_packus_epi16(wide, wide));
    if (is_last)
        memcpy(out, &levels, 3);
    else
        memcpy(out, &levels, 4);
}

__attribute__((target("avx2"))) static inline __m256i pair_of_weights(const int16_t *halves)
{
    int both;
    memcpy(&both, halves, sizeof both);
    return _mm256_set1_epi32(both);
}

/* The same for two rows, one in each half of a register: four pixels at a time, multiplied by the halves of their weights. */
__attribute__((target("avx2"))) static void along_rows_avx2(const uint8_t *row, const uint8_t *other, int origin, const Weights *made,
                                                            int outputs, uint8_t *out, uint8_t *other_out)
{
    const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));
    const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    for (int at = 0; at < outputs; at++, out += 3, other_out += 3) {
        const int16_t *weight = made->halves + (size_t)at * made->quads * 8;
        const int quads = (made->count[at] + 3) / 4;
        size_t pixel = (size_t)(made->first[at] - origin) * 3;
        __m256i low = half, high = _mm256_setzero_si256();
        for (int i = 0; i < quads; i++, pixel += 12, weight += 8) {
            const __m256i levels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(row + pixel))),
                                                           _mm_loadu_si128((const __m128i *)(other + pixel)), 1);
            const __m256i left = _mm256_shuffle_epi8(levels, first), right = _mm256_shuffle_epi8(levels, second);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(left, pair_of_weights(weight)));
            low = _mm256_add_epi32(low, _mm256_madd_epi16(right, pair_of_weights(weight + 2)));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(left, pair_of_weights(weight + 4)));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(right, pair_of_weights(weight + 6)));
        }
        __m256i sum = _mm256_srai_epi32(_mm256_add_epi32(low, _mm256_slli_epi32(high, 15)), BITS);
        sum = _mm256_packs_epi32(sum, sum);
        store(_mm256_castsi256_si128(sum), at + 1 == outputs, out);
        store(_mm256_extracti128_si256(sum, 1), at + 1 == outputs, other_out);
    }
}

__attribute__((target("avx2"))) static void across_rows_avx2(const uint8_t *rows, size_t stride, size_t bytes, const int32_t *weight,
                                                             int count, uint8_t *out)
{
    const __m256i half = _mm256_set1_epi32(1 << (BITS - 1));
    const __m128i shift = _mm_cvtsi32_si128(BITS);
    size_t at = 0;
    for (; at + 16 <= bytes; at += 16) {
        __m256i low = half, high = half;
        for (int i = 0; i < count; i++) {
            const __m128i levels = _mm_loadu_si128((const __m128i *)(rows + (size_t)i * stride + at));
            const __m256i factor = _mm256_set1_epi32(weight[i]);
            low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(levels), factor));
            high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(levels, 8)), factor));
        }
        __m256i both = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        both = _mm256_permute4x64_epi64(both, 0xD8); /* packing works on halves */
        both = _mm256_permute4x64_epi64(_mm256_packus_epi16(both, both), 0xD8);
        _mm_storeu_si128((__m128i *)(out + at), _mm256_castsi256_si128(both));
    }
    across_rows(rows, stride, at, bytes, weight, count, out);
}
#endif

/* Pass along `rows` rows, `stride` bytes apart, which start with the source pixel `origin` and have `given` bytes; 0: no memory. */
static int pass_along(const uint8_t *source, size_t stride, int rows, int origin, size_t given, const Weights *made, int outputs, uint8_t *out)
{
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        const size_t bytes = (size_t)outputs * 3, room = given + OVERREAD;
        uint8_t *padded = malloc(2 * room);
        const uint8_t *end = source + (size_t)(rows - 1) * stride + given;
        for (int y = 0; y < rows && padded != NULL; y += 2, source += 2 * stride, out += 2 * bytes) {
            const size_t next = y + 1 < rows; /* the last of an odd number of rows is done twice */
            const uint8_t *row = source, *other = source + next * stride;
            if ((size_t)(end - other) < room) {
                row = memcpy(padded, row, given);
                other = memcpy(padded + room, other, given);
            }
            along_rows_avx2(row, other, origin, made, outputs, out, out + next * bytes);
        }
        free(padded);
        return padded != NULL;
    }
#endif
    for (int y = 0; y < rows; y++, source += stride, out += (size_t)outputs * 3)
        along_row(source, origin, made, outputs, out);
    return 1;
}

/* Pass across rows of `bytes`, `stride` bytes apart, which start with the source row `origin`. */
static void pass_across(const uint8_t *source, size_t stride, int origin, size_t bytes, const Weights *made, int outputs, uint8_t *out)
{
    for (int y = 0; y < outputs; y++, out += bytes) {
        const uint8_t *rows = source + (size_t)(made->first[y] - origin) * stride;
        const int32_t *weight = made->weights + (size_t)y * made->taps;
#ifdef HAS_AVX2
        if (__builtin_cpu_supports("avx2")) {
            across_rows_avx2(rows, stride, bytes, weight, made->count[y], out);
            continue;
        }
#endif
        across_rows(rows, stride, 0, bytes, weight, made->count[y], out);
    }
}

typedef struct {
    int height, width; /* of the whole source */
    int top, left;     /* where the part that is given starts */
    int rows, columns; /* of the part */
    int target_height, target_width;
    int from_row, from_column, out_rows, out_columns; /* window of the target that is computed */
    int is_cubic, may_start_across; /* the order of the passes is Pillow's own choice, by its version */
} Plan;

/* Copy rows of `bytes`, for an axis that keeps its size: without a pass, as in Pillow and in torch. */
static void copy(const uint8_t *source, size_t stride, size_t bytes, int rows, uint8_t *out)
{
    for (int y = 0; y < rows; y++)
        memcpy(out + y * bytes, source + y * stride, bytes);
}

/* Pixels of the source for the outputs, from the first one. */
static int span(const Weights *made, int outputs) { return made->first[outputs - 1] + made->count[outputs - 1] - made->first[0]; }

/* Whether the pass across rows comes first: where it shrinks the image the most, in the sense of newer versions of Pillow. */
static int starts_across(const Plan *plan)
{
    const int shorter = plan->height - plan->target_height;
    return plan->may_start_across && shorter > 0 && shorter > 2 * (plan->width - plan->target_width);
}

static int passes(const uint8_t *source, size_t stride, const Plan *plan, const Weights *across, const Weights *down, uint8_t *out)
{
    const int rows = span(down, plan->out_rows), columns = span(across, plan->out_columns);
    const size_t wanted = (size_t)plan->out_columns * 3, given = (size_t)columns * 3;
    const int same_width = plan->width == plan->target_width, same_height = plan->height == plan->target_height;
    source += (size_t)(down->first[0] - plan->top) * stride + (size_t)(across->first[0] - plan->left) * 3;
    if (same_width && same_height) {
        copy(source, stride, wanted, plan->out_rows, out);
        return 1;
    }
    if (same_height)
        return pass_along(source, stride, rows, across->first[0], given, across, plan->out_columns, out);
    if (same_width) {
        pass_across(source, stride, down->first[0], wanted, down, plan->out_rows, out);
        return 1;
    }
    const int down_first = starts_across(plan);
    uint8_t *middle = malloc(down_first ? given * plan->out_rows : wanted * rows);
    int done = middle != NULL;
    if (done && down_first) {
        pass_across(source, stride, down->first[0], given, down, plan->out_rows, middle);
        done = pass_along(middle, given, plan->out_rows, across->first[0], given, across, plan->out_columns, out);
    } else if (done) {
        done = pass_along(source, stride, rows, across->first[0], given, across, plan->out_columns, middle);
        pass_across(middle, wanted, down->first[0], wanted, down, plan->out_rows, out);
    }
    free(middle);
    return done;
}

/* Whether the part has all pixels that the weights of an axis ask for. */
static int covers(const Weights *made, int outputs, int start, int length)
{
    return made->first[0] >= start && made->first[0] + span(made, outputs) <= start + length;
}

static int resize_into(const uint8_t *source, size_t stride, const Plan *plan, uint8_t *out)
{
    Weights across = {0}, down = {0};
    int done = weigh(&across, plan->width, plan->target_width, plan->from_column, plan->out_columns, plan->is_cubic) &&
               weigh(&down, plan->height, plan->target_height, plan->from_row, plan->out_rows, plan->is_cubic) &&
               covers(&across, plan->out_columns, plan->left, plan->columns) &&
               covers(&down, plan->out_rows, plan->top, plan->rows) && passes(source, stride, plan, &across, &down, out);
    release(&across);
    release(&down);
    return done;
}

static int is_sound(const Plan *plan, Py_ssize_t out)
{
    return plan->height > 0 && plan->width > 0 && plan->top >= 0 && plan->left >= 0 && plan->rows > 0 && plan->columns > 0 &&
           plan->top <= plan->height - plan->rows && plan->left <= plan->width - plan->columns && plan->target_height > 0 &&
           plan->target_width > 0 && plan->from_row >= 0 && plan->from_column >= 0 && plan->out_rows > 0 && plan->out_columns > 0 &&
           plan->from_row <= plan->target_height - plan->out_rows && plan->from_column <= plan->target_width - plan->out_columns &&
           out == (Py_ssize_t)plan->out_rows * plan->out_columns * 3;
}

/* Whether a buffer is an image (height, width, 3) of bytes, whose rows may lie apart. */
static int is_image(const Py_buffer *buffer)
{
    return buffer->ndim == 3 && buffer->itemsize == 1 && buffer->shape[2] == 3 && buffer->strides[2] == 1 &&
           buffer->strides[1] == 3 && buffer->strides[0] >= buffer->shape[1] * 3 && buffer->shape[0] <= 1 << 24 &&
           buffer->shape[1] <= 1 << 24;
}

/* See its text in METHODS. */
static PyObject *resize(PyObject *self, PyObject *args)
{
    PyObject *part;
    Py_buffer source, out;
    Plan plan;
    int done = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "O(ii)(ii)(ii)(iiii)ppw*", &part, &plan.height, &plan.width, &plan.top, &plan.left,
                          &plan.target_height, &plan.target_width, &plan.from_row, &plan.from_column, &plan.out_rows,
                          &plan.out_columns, &plan.is_cubic, &plan.may_start_across, &out))
        return NULL;
    if (PyObject_GetBuffer(part, &source, PyBUF_STRIDES) < 0) {
        PyBuffer_Release(&out);
        return NULL;
    }
    if (is_image(&source)) {
        plan.rows = (int)source.shape[0];
        plan.columns = (int)source.shape[1];
        if (is_sound(&plan, out.len)) {
            Py_BEGIN_ALLOW_THREADS
            done = resize_into(source.buf, (size_t)source.strides[0], &plan, out.buf);
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&source);
    PyBuffer_Release(&out);
    if (!done)
        return PyErr_Format(PyExc_ValueError, "resize: the part does not cover the window, or the buffers have other sizes");
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"resize", resize, METH_VARARGS,
     "resize(part, (height, width), (top, left), (target height, target width), (top, left, rows, columns), is_cubic, may_start_across, "
     "out)\n\n"
     "Resize an image (height, width, 3), of which `part` are the rows and columns from (top, left), and write a window of the result "
     "to `out`. Raises ValueError where the part does not cover the window."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_resize", "Resizing of images.", -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resize(void) { return PyModule_Create(&MODULE); }
