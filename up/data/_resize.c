/* Antialiased resizing of 8-bit RGB images, equal in every bit to Pillow's `Image.resize` or to torch's `interpolate` of uint8, in a
   third and in half of their time.

   As both do, it convolves along rows and across them with integer weights and rounds between the two passes: Pillow's weights have
   22 bits, torch's 16. A part of the image is enough where it has all pixels that the wanted window of the result depends on. The
   result may be mirrored left to right, which costs nothing. */

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

#define BITS 22 /* precision of Pillow's weights */

enum { ALONG_FIRST, EITHER_FIRST, TORCH }; /* arithmetic: of Pillow, by its version, which decides on the order of passes; of torch */

typedef struct {
    int taps;             /* weights an output pixel */
    int *first, *count;   /* source pixels of each output pixel */
    int32_t *weights;     /* (outputs, taps) */
    int16_t *halves;      /* (outputs, quads, 2, 4): 15 low bits and the rest of four weights; torch's, (outputs, quads, 4), have no rest */
    int quads, bits, is_torch;
} Weights;

typedef struct {
    int source, target; /* pixels */
    int is_cubic, is_torch;
} Axis;

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
    const int four = made->is_torch ? 4 : 8;
    made->quads = (made->taps + 3) / 4;
    made->halves = calloc((size_t)outputs * made->quads * four, sizeof(int16_t));
    for (int at = 0; at < outputs && made->halves != NULL; at++)
        for (int i = 0; i < made->taps; i++) {
            const int32_t weight = made->weights[(size_t)at * made->taps + i];
            int16_t *half = made->halves + ((size_t)at * made->quads + i / 4) * four + i % 4;
            half[0] = (int16_t)(made->is_torch ? weight : weight & 0x7FFF);
            if (!made->is_torch)
                half[4] = (int16_t)(weight >> 15);
        }
    return made->halves != NULL;
}

/* The precision with which the largest weight is below 1 << 15, as torch chooses it. */
static int bits_for(double largest)
{
    int bits = 0;
    while (bits < 22 && (int)(0.5 + largest * (1 << (bits + 1))) < 1 << 15)
        bits++;
    return bits;
}

/* Exact weights of the output `at`, and the number of them. */
static int weigh_one(const Axis *axis, int at, double *exact, int *start)
{
    const double scale = (double)axis->source / axis->target, stretch = scale < 1.0 ? 1.0 : scale;
    const double support = (axis->is_cubic ? 2.0 : 1.0) * stretch, inverse = 1.0 / stretch, centre = (at + 0.5) * scale;
    int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
    if (axis->source == axis->target) /* no pass along this axis */
        first = at, last = first + 1;
    *start = first = first < 0 ? 0 : first;
    const int count = (last > axis->source ? axis->source : last) - first;
    const double offset = first - centre;
    double sum = 0.0;
    for (int i = 0; i < count; i++) {
        const double distance = (axis->is_torch ? i + offset + 0.5 : i + first - centre + 0.5) * inverse; /* rounded as they do */
        exact[i] = axis->is_cubic ? cubic(distance) : triangle(distance);
        sum += exact[i];
    }
    for (int i = 0; i < count; i++)
        exact[i] /= sum != 0.0 ? sum : 1.0;
    return count;
}

/* Weights of the outputs `from` to `from + outputs` of an axis. */
static int weigh(Weights *made, const Axis *axis, int from, int outputs)
{
    const double scale = (double)axis->source / axis->target;
    const int taps = made->taps = (int)ceil((axis->is_cubic ? 2.0 : 1.0) * (scale < 1.0 ? 1.0 : scale)) * 2 + 1;
    const int start = axis->is_torch ? 0 : from, end = axis->is_torch ? axis->target : from + outputs; /* torch's precision is of all */
    double *exact = calloc((size_t)(end - start) * taps, sizeof *exact), largest = 0.0;
    int *counts = malloc(sizeof(int) * (end - start)), *firsts = malloc(sizeof(int) * (end - start));
    made->first = malloc(sizeof(int) * outputs);
    made->count = malloc(sizeof(int) * outputs);
    made->weights = malloc(sizeof(int32_t) * outputs * taps);
    made->is_torch = axis->is_torch;
    const int has_memory = exact && counts && firsts && made->first && made->count && made->weights;
    for (int at = start; has_memory && at < end; at++) {
        double *own = exact + (size_t)(at - start) * taps;
        counts[at - start] = weigh_one(axis, at, own, firsts + at - start);
        for (int i = 0; i < counts[at - start]; i++)
            largest = own[i] > largest ? own[i] : largest;
    }
    made->bits = axis->is_torch ? bits_for(largest) : BITS;
    for (int at = 0; has_memory && at < outputs; at++) {
        const int own = at + from - start;
        made->first[at] = firsts[own];
        made->count[at] = counts[own];
        for (int i = 0; i < taps; i++) {
            const double value = exact[(size_t)own * taps + i] * (1 << made->bits);
            made->weights[(size_t)at * taps + i] = (int32_t)(value < 0 ? value - 0.5 : value + 0.5);
        }
    }
    free(exact);
    free(counts);
    free(firsts);
    return has_memory && split(made, outputs);
}

static inline uint8_t level(int32_t sum, int bits)
{
    sum >>= bits;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* A row of `outputs` pixels of 3 channels, maybe mirrored, from a row that starts with the source pixel `origin`. */
static void along_row(const uint8_t *row, int origin, const Weights *made, int outputs, int is_mirrored, uint8_t *out)
{
    for (int number = 0; number < outputs; number++, out += 3) {
        const int at = is_mirrored ? outputs - 1 - number : number;
        const uint8_t *pixel = row + (size_t)(made->first[at] - origin) * 3;
        const int32_t *weight = made->weights + (size_t)at * made->taps;
        int32_t red = 1 << (made->bits - 1), green = red, blue = red;
        for (int i = 0; i < made->count[at]; i++, pixel += 3) {
            red += pixel[0] * weight[i];
            green += pixel[1] * weight[i];
            blue += pixel[2] * weight[i];
        }
        out[0] = level(red, made->bits);
        out[1] = level(green, made->bits);
        out[2] = level(blue, made->bits);
    }
}

/* A row of `bytes` from `count` rows, `stride` bytes apart; continues at byte `at`. */
static void across_rows(const uint8_t *rows, size_t stride, size_t at, size_t bytes, const int32_t *weight, int count, int bits,
                        uint8_t *out)
{
    for (; at < bytes; at++) {
        int32_t sum = 1 << (bits - 1);
        for (int i = 0; i < count; i++)
            sum += rows[(size_t)i * stride + at] * weight[i];
        out[at] = level(sum, bits);
    }
}

#ifdef HAS_AVX2
#define OVERREAD 16 /* bytes after the last pixel */

/* Store a pixel of 16-bit levels, and unless it is the last of its row a byte beside it that the next one overwrites: one instruction. */
__attribute__((target("avx2"))) static inline void store(__m128i wide, int is_last, int is_mirrored, uint8_t *out)
{
    const unsigned levels = (unsigned)_mm_cvtsi128_si32(_mm_packus_epi16(wide, wide)), moved = levels << 8;
    if (is_last)
        memcpy(out, &levels, 3);
    else if (is_mirrored) /* the next one is to the left */
        memcpy(out - 1, &moved, 4);
    else
        memcpy(out, &levels, 4);
}

__attribute__((target("avx2"))) static inline __m256i pair_of_weights(const int16_t *halves)
{
    int both;
    memcpy(&both, halves, sizeof both);
    return _mm256_set1_epi32(both);
}

#define PAIRS 2 /* of rows that are convolved at once */

/* The same for pairs of rows, one in each half of a register: four pixels at a time, multiplied by the halves of their weights. */
__attribute__((target("avx2"), always_inline)) static inline void along_pairs(const uint8_t *const *rows, int origin, const Weights *made,
                                                                              int outputs, int is_mirrored, int has_rest,
                                                                              uint8_t *const *out)
{
    const __m256i half = _mm256_set1_epi32(1 << (made->bits - 1));
    const __m128i shift = _mm_cvtsi32_si128(made->bits);
    const __m256i first = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m256i second = _mm256_broadcastsi128_si256(_mm_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
    const int *firsts = made->first, *counts = made->count, four = has_rest ? 8 : 4;
    const int16_t *halves = made->halves;
    const size_t of_output = (size_t)made->quads * four;
    for (int at = 0; at < outputs; at++) { /* never from the last one on: large images are read a third more slowly then */
        const int quads = (counts[at] + 3) / 4;
        const int16_t *weight = halves + at * of_output;
        size_t pixel = (size_t)(firsts[at] - origin) * 3;
        __m256i low[PAIRS], high[PAIRS];
        for (int pair = 0; pair < PAIRS; pair++)
            low[pair] = half, high[pair] = _mm256_setzero_si256();
        for (int i = 0; i < quads; i++, pixel += 12, weight += four)
            for (int pair = 0; pair < PAIRS; pair++) {
                const __m128i above = _mm_loadu_si128((const __m128i *)(rows[2 * pair] + pixel));
                const __m128i below = _mm_loadu_si128((const __m128i *)(rows[2 * pair + 1] + pixel));
                const __m256i levels = _mm256_inserti128_si256(_mm256_castsi128_si256(above), below, 1);
                const __m256i left = _mm256_shuffle_epi8(levels, first), right = _mm256_shuffle_epi8(levels, second);
                low[pair] = _mm256_add_epi32(low[pair], _mm256_madd_epi16(left, pair_of_weights(weight)));
                low[pair] = _mm256_add_epi32(low[pair], _mm256_madd_epi16(right, pair_of_weights(weight + 2)));
                if (has_rest) {
                    high[pair] = _mm256_add_epi32(high[pair], _mm256_madd_epi16(left, pair_of_weights(weight + 4)));
                    high[pair] = _mm256_add_epi32(high[pair], _mm256_madd_epi16(right, pair_of_weights(weight + 6)));
                }
            }
        const size_t to = 3 * (size_t)(is_mirrored ? outputs - 1 - at : at);
        for (int pair = 0; pair < PAIRS; pair++) {
            const __m256i whole = has_rest ? _mm256_add_epi32(low[pair], _mm256_slli_epi32(high[pair], 15)) : low[pair];
            const __m256i sum = _mm256_sra_epi32(whole, shift), packed = _mm256_packs_epi32(sum, sum);
            store(_mm256_castsi256_si128(packed), at + 1 == outputs, is_mirrored, out[2 * pair] + to);
            store(_mm256_extracti128_si256(packed, 1), at + 1 == outputs, is_mirrored, out[2 * pair + 1] + to);
        }
    }
}

__attribute__((target("avx2"))) static void along_rows_avx2(const uint8_t *const *rows, int origin, const Weights *made, int outputs,
                                                            int is_mirrored, uint8_t *const *out)
{
    if (made->is_torch)
        along_pairs(rows, origin, made, outputs, is_mirrored, 0, out);
    else
        along_pairs(rows, origin, made, outputs, is_mirrored, 1, out);
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
    across_rows(rows, stride, at, bytes, weight, count, BITS, out);
}

/* The same with weights of 16 bits: two rows at a time; `halves` are the weights for it. */
__attribute__((target("avx2"))) static void across_pairs_avx2(const uint8_t *rows, size_t stride, size_t bytes, const int32_t *weight,
                                                              const int16_t *halves, int count, int bits, uint8_t *out)
{
    const __m256i half = _mm256_set1_epi32(1 << (bits - 1));
    const __m128i shift = _mm_cvtsi32_si128(bits);
    size_t at = 0;
    for (; at + 16 <= bytes; at += 16) {
        const uint8_t *row = rows + at;
        __m256i low = half, high = half;
        for (int i = 0; i < count; i += 2, row += 2 * stride) {
            const __m256i factors = pair_of_weights(halves + i);
            const __m128i one = _mm_loadu_si128((const __m128i *)row);
            const __m128i next = _mm_loadu_si128((const __m128i *)(i + 1 < count ? row + stride : row)); /* the weight is 0 */
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(one, next)), factors));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_cvtepu8_epi16(_mm_unpackhi_epi8(one, next)), factors));
        }
        __m256i both = _mm256_packs_epi32(_mm256_sra_epi32(low, shift), _mm256_sra_epi32(high, shift));
        both = _mm256_permute4x64_epi64(both, 0xD8); /* packing works on halves */
        both = _mm256_permute4x64_epi64(_mm256_packus_epi16(both, both), 0xD8);
        _mm_storeu_si128((__m128i *)(out + at), _mm256_castsi256_si128(both));
    }
    across_rows(rows, stride, at, bytes, weight, count, bits, out);
}
#endif

/* Pass along `rows` rows, `stride` bytes apart, which start with the source pixel `origin` and have `given` bytes; 0: no memory. */
static int pass_along(const uint8_t *source, size_t stride, int rows, int origin, size_t given, const Weights *made, int outputs,
                      int is_mirrored, uint8_t *out)
{
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        const size_t bytes = (size_t)outputs * 3, room = given + OVERREAD;
        uint8_t *padded = malloc(2 * PAIRS * room);
        for (int y = 0; y < rows && padded != NULL; y += 2 * PAIRS) {
            const uint8_t *from[2 * PAIRS];
            uint8_t *to[2 * PAIRS];
            for (int i = 0; i < 2 * PAIRS; i++) {
                const int row = y + i < rows ? y + i : rows - 1; /* the last one is done again */
                from[i] = source + (size_t)row * stride;
                to[i] = out + (size_t)row * bytes;
                if ((size_t)(rows - 1 - row) * stride < OVERREAD) /* nothing may be read after it */
                    from[i] = memcpy(padded + i * room, from[i], given);
            }
            along_rows_avx2(from, origin, made, outputs, is_mirrored, to);
        }
        free(padded);
        return padded != NULL;
    }
#endif
    for (int y = 0; y < rows; y++, source += stride, out += (size_t)outputs * 3)
        along_row(source, origin, made, outputs, is_mirrored, out);
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
            if (made->is_torch)
                across_pairs_avx2(rows, stride, bytes, weight, made->halves + (size_t)y * made->quads * 4, made->count[y], made->bits, out);
            else
                across_rows_avx2(rows, stride, bytes, weight, made->count[y], out);
            continue;
        }
#endif
        across_rows(rows, stride, 0, bytes, weight, made->count[y], made->bits, out);
    }
}

typedef struct {
    int height, width; /* of the whole source */
    int top, left;     /* where the part that is given starts */
    int rows, columns; /* of the part */
    int target_height, target_width;
    int from_row, from_column, out_rows, out_columns; /* window of the target that is computed */
    int is_cubic, arithmetic, is_mirrored;
} Plan;

/* Mirror rows of `columns` pixels, which no pass along rows has mirrored. */
static void mirror(uint8_t *rows, int number, int columns)
{
    for (; number > 0; number--, rows += (size_t)columns * 3)
        for (uint8_t *left = rows, *right = rows + (size_t)(columns - 1) * 3; left < right; left += 3, right -= 3)
            for (int band = 0; band < 3; band++) {
                const uint8_t kept = left[band];
                left[band] = right[band];
                right[band] = kept;
            }
}

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
    return plan->arithmetic == EITHER_FIRST && shorter > 0 && shorter > 2 * (plan->width - plan->target_width);
}

static int passes(const uint8_t *source, size_t stride, const Plan *plan, const Weights *across, const Weights *down, uint8_t *out)
{
    const int rows = span(down, plan->out_rows), columns = span(across, plan->out_columns);
    const size_t wanted = (size_t)plan->out_columns * 3, given = (size_t)columns * 3;
    const int same_width = plan->width == plan->target_width, same_height = plan->height == plan->target_height;
    source += (size_t)(down->first[0] - plan->top) * stride + (size_t)(across->first[0] - plan->left) * 3;
    const int is_mirrored = plan->is_mirrored;
    if (same_width) {
        if (same_height)
            copy(source, stride, wanted, plan->out_rows, out);
        else
            pass_across(source, stride, down->first[0], wanted, down, plan->out_rows, out);
        if (is_mirrored)
            mirror(out, plan->out_rows, plan->out_columns);
        return 1;
    }
    if (same_height)
        return pass_along(source, stride, rows, across->first[0], given, across, plan->out_columns, is_mirrored, out);
    const int down_first = starts_across(plan);
    uint8_t *middle = malloc(down_first ? given * plan->out_rows : wanted * rows);
    int done = middle != NULL;
    if (done && down_first) {
        pass_across(source, stride, down->first[0], given, down, plan->out_rows, middle);
        done = pass_along(middle, given, plan->out_rows, across->first[0], given, across, plan->out_columns, is_mirrored, out);
    } else if (done) {
        done = pass_along(source, stride, rows, across->first[0], given, across, plan->out_columns, is_mirrored, middle);
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
    const int is_torch = plan->arithmetic == TORCH;
    const Axis columns = {plan->width, plan->target_width, plan->is_cubic, is_torch};
    const Axis rows = {plan->height, plan->target_height, plan->is_cubic, is_torch};
    int done = weigh(&across, &columns, plan->from_column, plan->out_columns) && weigh(&down, &rows, plan->from_row, plan->out_rows) &&
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
    if (!PyArg_ParseTuple(args, "O(ii)(ii)(ii)(iiii)pipw*", &part, &plan.height, &plan.width, &plan.top, &plan.left,
                          &plan.target_height, &plan.target_width, &plan.from_row, &plan.from_column, &plan.out_rows,
                          &plan.out_columns, &plan.is_cubic, &plan.arithmetic, &plan.is_mirrored, &out))
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
    {"resize_window", resize, METH_VARARGS,
     "resize_window(part, (height, width), (top, left), (target height, target width), (top, left, rows, columns), is_cubic, arithmetic, "
     "is_mirrored, out)\n\n"
     "Resize an image (height, width, 3), of which `part` are the rows and columns from (top, left), and write a window of the result "
     "to `out`, mirrored left to right if asked for. `arithmetic`: 0 and 1 are of versions of Pillow, 2 is torch's. Raises ValueError "
     "where the part does not cover the window."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_resize", "Resizing of images.", -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__resize(void) { return PyModule_Create(&MODULE); }
