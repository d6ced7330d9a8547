/* Operations on 8-bit RGB pixels (H, W, 3), whose results equal those of Pillow, or of torchvision where a name ends in
 * _as_torch, to the last bit: the same arithmetic in the same order, vectorised, without intermediate images.
 *
 * Optional: `up/data/pixels.py` compares each operation with the library's when it is first used, and takes the library's
 * where they differ or where this file was not compiled. Build with -ffp-contract=off: a fused multiply-add rounds once less.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../_wide.h"

enum { RUN_OF_GREY = 256 };  /* pixels whose grey levels are computed at once */
enum { RUN_OF_SUM = 4096 };  /* pixels whose levels are summed in an int */
enum { MARGIN = 2 };  /* of edge pixels around an image, which a cubic filter reads */

INLINED uint8_t clipped(float level) {
    level = level > 0.0f ? level : 0.0f;
    return (uint8_t)(int)(level < 255.0f ? level : 255.0f);
}

/* ---- levels ---- */

INLINED void lookup_body(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, const uint8_t *tables) {
    for (Py_ssize_t at = 0; at < pixels; at++, in += 3, out += 3) {
        out[0] = tables[in[0]];
        out[1] = tables[256 + in[1]];
        out[2] = tables[512 + in[2]];
    }
}

DEFINE(lookup, (const uint8_t *in, uint8_t *out, Py_ssize_t pixels, const uint8_t *tables), (in, out, pixels, tables))

static void histogram(const uint8_t *in, Py_ssize_t pixels, int64_t *counts) {
    memset(counts, 0, 768 * sizeof *counts);
    for (Py_ssize_t at = 0; at < pixels; at++, in += 3) {
        counts[in[0]]++;
        counts[256 + in[1]]++;
        counts[512 + in[2]]++;
    }
}

/* ImageOps.autocontrast without a cutoff: the darkest level becomes 0, the lightest 255. */
static void stretched(const int64_t *counts, uint8_t *table) {
    int low = 0, high = 255;
    while (low < 255 && !counts[low]) low++;
    while (high > 0 && !counts[high]) high--;
    double scale = high > low ? 255.0 / (high - low) : 1.0, offset = high > low ? -low * scale : 0.0;
    for (int level = 0; level < 256; level++) {
        int wanted = (int)(level * scale + offset);
        table[level] = wanted < 0 ? 0 : wanted > 255 ? 255 : wanted;
    }
}

/* ImageOps.equalize: levels in proportion to the number of pixels below them. */
static void equalized(const int64_t *counts, uint8_t *table) {
    int64_t sum = 0, last = 0;
    int used = 0;
    for (int level = 0; level < 256; level++) {
        if (counts[level]) {
            sum += counts[level];
            last = counts[level];
            used++;
        }
    }
    int64_t step = used > 1 ? (sum - last) / 255 : 0, below = step / 2;
    for (int level = 0; level < 256; level++) {
        table[level] = step ? (uint8_t)(below / step > 255 ? 255 : below / step) : level;
        below += counts[level];
    }
}

INLINED int luma(const uint8_t *pixel) {
    return (pixel[0] * 19595 + pixel[1] * 38470 + pixel[2] * 7471 + 0x8000) >> 16;
}

INLINED void luma_sum_body(const uint8_t *in, Py_ssize_t pixels, int64_t *sum) {
    int64_t total = 0;
    while (pixels > 0) {  /* in ints, of which a vector has more */
        int of_run = 0, run = pixels < RUN_OF_SUM ? (int)pixels : RUN_OF_SUM;
        for (int at = 0; at < run; at++) of_run += luma(in + 3 * at);
        total += of_run, in += 3 * run, pixels -= run;
    }
    *sum = total;
}

DEFINE(luma_sum, (const uint8_t *in, Py_ssize_t pixels, int64_t *sum), (in, pixels, sum))

/* Image.blend of the grey image and the image. */
INLINED void blend_with_luma_body(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float share) {
    for (Py_ssize_t at = 0; at < pixels; at++, in += 3, out += 3) {
        int grey = luma(in);
        for (int band = 0; band < 3; band++) out[band] = clipped((float)grey + share * (float)((int)in[band] - grey));
    }
}

DEFINE(blend_with_luma, (const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float share), (in, out, pixels, share))

/* Image.blend of ImageFilter.SMOOTH and the image; the outermost pixels stay. */
INLINED void sharpen_body(const uint8_t *restrict in, uint8_t *restrict out, Py_ssize_t height, Py_ssize_t width, float share) {
    Py_ssize_t row = 3 * width;
    memcpy(out, in, row * height);
    for (Py_ssize_t y = 1; y < height - 1; y++) {
        const uint8_t *restrict above = in + (y - 1) * row, *restrict here = above + row, *restrict below = here + row;
        uint8_t *restrict made = out + y * row;
        for (Py_ssize_t at = 3; at < row - 3; at++) {
            int sum = above[at - 3] + above[at] + above[at + 3] + here[at - 3] + 5 * here[at] + here[at + 3] +
                      below[at - 3] + below[at] + below[at + 3];
            int smooth = (2 * sum + 13) / 26;  /* sum / 13 is never halfway between two levels, so that floats agree */
            made[at] = clipped((float)smooth + share * (float)((int)here[at] - smooth));
        }
    }
}

DEFINE(sharpen, (const uint8_t *in, uint8_t *out, Py_ssize_t height, Py_ssize_t width, float share), (in, out, height, width, share))

/* ---- torchvision's colours, on a CPU with fused multiply-add, as torch uses it there ---- */

INLINED float grey_as_torch(const uint8_t *pixel) {
    float grey = (float)pixel[0] * 0.2989f;
    grey = __builtin_fmaf((float)pixel[1], 0.587f, grey);
    return (float)(int)__builtin_fmaf((float)pixel[2], 0.114f, grey);
}

INLINED void grey_sum_as_torch_body(const uint8_t *in, Py_ssize_t pixels, int64_t *sum) {
    int64_t total = 0;
    while (pixels > 0) {
        int of_run = 0, run = pixels < RUN_OF_SUM ? (int)pixels : RUN_OF_SUM;
        for (int at = 0; at < run; at++) of_run += (int)grey_as_torch(in + 3 * at);
        total += of_run, in += 3 * run, pixels -= run;
    }
    *sum = total;
}

DEFINE(grey_sum_as_torch, (const uint8_t *in, Py_ssize_t pixels, int64_t *sum), (in, pixels, sum))

/* Levels times `own`, and as much of one grey level `other`: brightness, where that is 0, and contrast. */
static void blend_as_torch(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float own, float grey, float other) {
    uint8_t tables[768];
    for (int level = 0; level < 768; level++) tables[level] = clipped(fmaf(grey, other, (float)(level % 256) * own));
    lookup(in, out, pixels, tables);
}

INLINED void saturate_as_torch_body(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float own, float other) {
    uint8_t grey[RUN_OF_GREY], made[3 * RUN_OF_GREY];  /* loops that become vectors, since nothing else is where they write */
    for (Py_ssize_t run; pixels > 0; in += 3 * run, out += 3 * run, pixels -= run) {
        run = pixels < RUN_OF_GREY ? pixels : RUN_OF_GREY;
        for (Py_ssize_t at = 0; at < run; at++) grey[at] = (uint8_t)(int)grey_as_torch(in + 3 * at);
        for (Py_ssize_t at = 0; at < run; at++) made[3 * at] = made[3 * at + 1] = made[3 * at + 2] = grey[at];
        for (Py_ssize_t at = 0; at < 3 * run; at++) made[at] = clipped(__builtin_fmaf((float)made[at], other, (float)in[at] * own));
        memcpy(out, made, 3 * run);
    }
}

DEFINE(saturate_as_torch, (const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float own, float other), (in, out, pixels, own, other))

/* ---- hue ---- */

/* By the sixth of the circle: which of the value, p, q and t is red, green and blue. */
static const uint8_t SIXTHS[6][3] = {{0, 3, 1}, {2, 0, 1}, {1, 0, 3}, {1, 2, 0}, {3, 1, 0}, {0, 1, 2}};

INLINED int most(int a, int b) {
    return a > b ? a : b;
}

INLINED int least(int a, int b) {
    return a < b ? a : b;
}

INLINED float within_one(float value) {
    return value < 0.0f ? 0.0f : value > 1.0f ? 1.0f : value;
}

/* torchvision's adjust_hue: all in floats. */
INLINED void hue_as_torch_body(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float turn) {
    for (Py_ssize_t at = 0; at < pixels; at++, in += 3, out += 3) {
        const float scale = (float)(1.0 / 255.0);
        float r = in[0] * scale, g = in[1] * scale, b = in[2] * scale;
        float high = most(in[0], most(in[1], in[2])) * scale, low = least(in[0], least(in[1], in[2])) * scale;
        float range = high - low, part = high == low ? 1.0f : range, s = range / (high == low ? 1.0f : high);
        float rc = (high - r) / part, gc = (high - g) / part, bc = (high - b) / part;
        float h = high == r ? bc - gc : high == g ? rc + 2.0f - bc : gc + 4.0f - rc;
        h = h * (float)(1.0 / 6.0) + 1.0f;
        h = h - (float)(int)h + turn;
        h = h - (float)(int)h;
        if (h < 0.0f) h += 1.0f;
        float sixth = h * 6.0f, f = sixth - (float)(int)sixth, sf = s * f, rest = 1.0f - s;
        float parts[4] = {high, within_one(rest * high), within_one((1.0f - sf) * high), within_one((sf + rest) * high)};
        const uint8_t *chosen = SIXTHS[(int)sixth % 6];
        for (int band = 0; band < 3; band++) out[band] = (uint8_t)(int)(parts[chosen[band]] * (float)255.999);
    }
}

DEFINE(hue_as_torch, (const uint8_t *in, uint8_t *out, Py_ssize_t pixels, float turn), (in, out, pixels, turn))

/* Pillow's conversion to HSV, a turn of the hue in 255ths, and its conversion back. */
INLINED void hue_body(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, int turn) {
    for (Py_ssize_t at = 0; at < pixels; at++, in += 3, out += 3) {
        int high = most(in[0], most(in[1], in[2])), low = least(in[0], least(in[1], in[2]));
        float range = (float)(high - low);
        int saturation = high == low ? 0 : (int)(range / (float)high * 255.0);
        if (saturation == 0) {
            memset(out, high, 3);
            continue;
        }
        float rc = (float)(high - in[0]) / range, gc = (float)(high - in[1]) / range, bc = (float)(high - in[2]) / range;
        float h = in[0] == high ? bc - gc : in[1] == high ? (float)(2.0 + rc - bc) : (float)(4.0 + gc - rc);
        double turned = h / 6.0 + 1.0;
        h = (float)(turned - (double)(int)turned);
        uint8_t hue = (uint8_t)((int)(h * 255.0) + turn);
        int sixth = (int)((float)hue * 6.0 / 255.0);
        float f = (float)((float)hue * 6.0 / 255.0 - (float)sixth), fs = (float)((float)saturation / 255.0);
        const uint8_t parts[4] = {
            (uint8_t)high, (uint8_t)(int)((float)high * (1.0 - fs) + 0.5), (uint8_t)(int)((float)high * (1.0 - fs * f) + 0.5),
            (uint8_t)(int)((float)high * (1.0 - fs * (1.0 - f)) + 0.5)
        };
        const uint8_t *chosen = SIXTHS[sixth % 6];
        for (int band = 0; band < 3; band++) out[band] = parts[chosen[band]];
    }
}

DEFINE(hue, (const uint8_t *in, uint8_t *out, Py_ssize_t pixels, int turn), (in, out, pixels, turn))

/* ---- geometry ---- */

/* The image in fours of bytes, with MARGIN more pixels on each side that repeat the edge. */
static void spread(const uint8_t *in, uint8_t *out, Py_ssize_t height, Py_ssize_t width) {
    Py_ssize_t row = 4 * (width + 2 * MARGIN);
    for (Py_ssize_t y = 0; y < height; y++) {
        uint8_t *made = out + (y + MARGIN) * row + 4 * MARGIN;
        for (Py_ssize_t x = 0; x < width; x++, in += 3) {
            made[4 * x] = in[0];
            made[4 * x + 1] = in[1];
            made[4 * x + 2] = in[2];
            made[4 * x + 3] = 0;
        }
        for (int x = 1; x <= MARGIN; x++) {
            memcpy(made - 4 * x, made, 4);
            memcpy(made + 4 * (width - 1 + x), made + 4 * (width - 1), 4);
        }
    }
    for (int y = 0; y < MARGIN; y++) {
        memcpy(out + y * row, out + MARGIN * row, row);
        memcpy(out + (height + MARGIN + y) * row, out + (height + MARGIN - 1) * row, row);
    }
}

/* A transformation: its map, and the spread image of rows of `row` bytes. */
typedef struct {
    const uint8_t *in;
    int height, width, row, is_cubic;
    double m[6];
    uint8_t fill[3];
} Transformation;

INLINED double cubic(double v1, double v2, double v3, double v4, double at) {
    double p2 = -v1 + v3, p3 = 2 * (v1 - v2) + v3 - v4, p4 = -v1 + v2 - v3 + v4;
    return v2 + at * (p2 + at * (p3 + at * p4));
}

/* One pixel in the arithmetic of Pillow, double precision. */
INLINED void exact_pixel(const Transformation *how, int row, int column, uint8_t *out) {
    double from_x = column + 0.5, from_y = row + 0.5;
    double right = how->m[0] * from_x + how->m[1] * from_y + how->m[2], down = how->m[3] * from_x + how->m[4] * from_y + how->m[5];
    if (right < 0.0 || right >= how->width || down < 0.0 || down >= how->height) {
        memcpy(out, how->fill, 3);
        return;
    }
    right -= 0.5;
    down -= 0.5;
    int x = (int)(right + 1.0) - 1, y = (int)(down + 1.0) - 1;
    double dx = right - x, dy = down - y;
    const uint8_t *near = how->in + (y + MARGIN) * how->row + 4 * (x + MARGIN);
    for (int band = 0; band < 3; band++, near++) {
        const uint8_t *in = near, *under = in + how->row;
        double value;
        if (how->is_cubic) {
            double rows[4];
            in -= how->row + 4;
            for (int number = 0; number < 4; number++, in += how->row) rows[number] = cubic(in[0], in[4], in[8], in[12], dx);
            value = cubic(rows[0], rows[1], rows[2], rows[3], dy);
        } else {
            double above = in[0] + (in[4] - in[0]) * dx, below = under[0] + (under[4] - under[0]) * dx;
            value = above + (below - above) * dy;
        }
        out[band] = value <= 0.0 ? 0 : value >= 255.0 ? 255 : (uint8_t)value;
    }
}

static void transform_exactly(const Transformation *how, uint8_t *out) {
    for (int row = 0; row < how->height; row++)
        for (int column = 0; column < how->width; column++, out += 3) exact_pixel(how, row, column, out);
}

#ifdef WIDE
#include <immintrin.h>

enum { RUN = 64 };  /* pixels whose positions are computed at once */

/* Positions of pixels: of the one above and to the left, -1 outside of the image, and the rest. */
typedef struct {
    int near[RUN];
    double dx[RUN], dy[RUN];
} Positions;

WIDE static inline void positions_of(const Transformation *how, int row, int column, Positions *at) {
    double a = how->m[0], b = how->m[1], c = how->m[2], d = how->m[3], e = how->m[4], f = how->m[5];
    double width = how->width, height = how->height, from_y = row + 0.5;
    int bytes = how->row;
    for (int number = 0; number < RUN; number++) {
        double from_x = column + number + 0.5;
        double right = a * from_x + b * from_y + c, down = d * from_x + e * from_y + f;
        int inside = (right >= 0.0) & (right < width) & (down >= 0.0) & (down < height);
        right -= 0.5;
        down -= 0.5;
        int x = (int)(right + 1.0) - 1, y = (int)(down + 1.0) - 1;
        at->dx[number] = right - x;
        at->dy[number] = down - y;
        at->near[number] = inside ? (y + MARGIN) * bytes + 4 * (x + MARGIN) : -1;
    }
}

/* A pixel as doubles. */
WIDE static inline __m256d pixel(const uint8_t *in) {
    int four;
    memcpy(&four, in, 4);
    return _mm256_cvtepi32_pd(_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four)));
}

WIDE static inline __m256d between(__m256d a, __m256d b, __m256d share) {
    return _mm256_add_pd(a, _mm256_mul_pd(_mm256_sub_pd(b, a), share));
}

WIDE static inline __m128i linear_pixel(const uint8_t *in, int row, double dx, double dy) {
    __m256d share = _mm256_set1_pd(dx);
    __m256d above = between(pixel(in), pixel(in + 4), share), below = between(pixel(in + row), pixel(in + row + 4), share);
    return _mm256_cvttpd_epi32(between(above, below, _mm256_set1_pd(dy)));
}

WIDE static inline __m256d cubic_of_four(__m256d v1, __m256d v2, __m256d v3, __m256d v4, __m256d at) {
    __m256d left = _mm256_sub_pd(v1, v2), p2 = _mm256_sub_pd(v3, v1);
    __m256d p3 = _mm256_sub_pd(_mm256_add_pd(_mm256_add_pd(left, left), v3), v4);
    __m256d p4 = _mm256_add_pd(_mm256_sub_pd(_mm256_sub_pd(v2, v1), v3), v4);
    __m256d sum = _mm256_add_pd(p3, _mm256_mul_pd(at, p4));
    sum = _mm256_add_pd(p2, _mm256_mul_pd(at, sum));
    return _mm256_add_pd(v2, _mm256_mul_pd(at, sum));
}

WIDE static inline __m128i cubic_pixel(const uint8_t *in, int row, double dx, double dy) {
    __m256d rows[4], share = _mm256_set1_pd(dx);
    in -= row + 4;
    for (int number = 0; number < 4; number++, in += row)
        rows[number] = cubic_of_four(pixel(in), pixel(in + 4), pixel(in + 8), pixel(in + 12), share);
    return _mm256_cvttpd_epi32(cubic_of_four(rows[0], rows[1], rows[2], rows[3], _mm256_set1_pd(dy)));
}

/* Two pixels as floats. */
WIDE static inline __m256 pair(const uint8_t *in) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)in)));
}

/* Weights of the four values around a position, those of the polynomial in `cubic`. */
WIDE static inline __m128 weights(float d) {
    __m128 at = _mm_set1_ps(d), sum = _mm_set_ps(1, -1, 1, -1);
    sum = _mm_fmadd_ps(sum, at, _mm_set_ps(-1, 1, -2, 2));
    sum = _mm_fmadd_ps(sum, at, _mm_set_ps(0, 1, 0, -1));
    return _mm_fmadd_ps(sum, at, _mm_set_ps(0, 0, 1, 0));
}

/* The value of a cubic in floats, with an error below .0025. */
WIDE static inline __m128 cubic_in_floats(const uint8_t *in, int row, float dx, float dy) {
    __m128 wx = weights(dx), wy = weights(dy);
    __m256 left = _mm256_setzero_ps(), right = left;
    in -= row + 4;
#define ADD_ROW(number)                                                           \
    {                                                                             \
        __m256 weight = _mm256_broadcastss_ps(_mm_permute_ps(wy, number * 0x55)); \
        left = _mm256_fmadd_ps(pair(in + number * row), weight, left);            \
        right = _mm256_fmadd_ps(pair(in + number * row + 8), weight, right);      \
    }
    ADD_ROW(0) ADD_ROW(1) ADD_ROW(2) ADD_ROW(3)
#undef ADD_ROW
    __m256 first = _mm256_set_m128(_mm_permute_ps(wx, 0x55), _mm_permute_ps(wx, 0));
    __m256 second = _mm256_set_m128(_mm_permute_ps(wx, 0xff), _mm_permute_ps(wx, 0xaa));
    __m256 both = _mm256_fmadd_ps(left, first, _mm256_mul_ps(right, second));
    return _mm_add_ps(_mm256_castps256_ps128(both), _mm256_extractf128_ps(both, 1));
}

/* Whether a value is closer than .004 to a level, so that its error matters: it is then computed again in doubles. */
WIDE static inline int is_close(__m128 value) {
    __m128 rest = _mm_sub_ps(value, _mm_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    rest = _mm_andnot_ps(_mm_set1_ps(-0.0f), rest);
    return _mm_movemask_ps(_mm_cmplt_ps(rest, _mm_set1_ps(0.004f))) & 7;
}

WIDE static void transform_wide(const Transformation *how, uint8_t *out) {
    const Transformation own = *how;  /* bytes are written, which might be those of *how */
    Positions at;
    for (int row = 0; row < own.height; row++)
        for (int column = 0; column < own.width; column++, out += 3) {
            int number = column % RUN;
            if (number == 0) positions_of(&own, row, column, &at);
            if (at.near[number] < 0) {
                memcpy(out, own.fill, 3);
                continue;
            }
            const uint8_t *near = own.in + at.near[number];
            double dx = at.dx[number], dy = at.dy[number];
            __m128i levels;
            if (own.is_cubic) {
                __m128 value = cubic_in_floats(near, own.row, (float)dx, (float)dy);
                levels = is_close(value) ? cubic_pixel(near, own.row, dx, dy) : _mm_cvttps_epi32(value);
            } else {
                levels = linear_pixel(near, own.row, dx, dy);
            }
            levels = _mm_packus_epi16(_mm_packus_epi32(levels, levels), levels);
            int four = _mm_cvtsi128_si32(levels);
            memcpy(out, &four, 3);
        }
}
#endif

/* ---- channels-last to planes ---- */

static void planes_from(const uint8_t *in, uint8_t *out, Py_ssize_t from, Py_ssize_t pixels) {
    for (Py_ssize_t at = from; at < pixels; at++)
        for (int band = 0; band < 3; band++) out[band * pixels + at] = in[3 * at + band];
}

#ifdef WIDE
static uint8_t gathers[3][3][16];  /* by band and by third of 48 bytes: where in it each of 16 pixels is */

static void make_gathers(void) {
    memset(gathers, 0x80, sizeof gathers);
    for (int band = 0; band < 3; band++)
        for (int at = 0; at < 16; at++) gathers[band][(3 * at + band) / 16][at] = (3 * at + band) % 16;
}

WIDE static void planes_wide(const uint8_t *in, uint8_t *out, Py_ssize_t pixels) {
    __m128i where[3][3];
    for (int band = 0; band < 3; band++)
        for (int third = 0; third < 3; third++) where[band][third] = _mm_loadu_si128((const __m128i *)gathers[band][third]);
    Py_ssize_t at = 0;
    for (; at + 16 <= pixels; at += 16) {
        const __m128i *from = (const __m128i *)(in + 3 * at);
        __m128i first = _mm_loadu_si128(from), second = _mm_loadu_si128(from + 1), third = _mm_loadu_si128(from + 2);
        for (int band = 0; band < 3; band++) {
            __m128i made = _mm_or_si128(_mm_shuffle_epi8(first, where[band][0]), _mm_shuffle_epi8(second, where[band][1]));
            made = _mm_or_si128(made, _mm_shuffle_epi8(third, where[band][2]));
            _mm_storeu_si128((__m128i *)(out + band * pixels + at), made);
        }
    }
    planes_from(in, out, at, pixels);
}
#endif

/* ---- YUV 4:2:0 to planes of RGB ---- */

static int16_t red_of[256], green_of_cb[256], green_of_cr[256], blue_of[256];  /* what colours add to the luma; green in 64ths */

static void make_colours(void) {
    for (int level = 0; level < 256; level++) {
        int own = level - 128;
        red_of[level] = (int16_t)lrint(1.402 * own);
        blue_of[level] = (int16_t)lrint(1.772 * own);
        green_of_cb[level] = (int16_t)lrint(-64 * 0.344136 * own);
        green_of_cr[level] = (int16_t)lrint(-64 * 0.714136 * own);
    }
}

typedef struct {
    const uint8_t *luma, *cb, *cr;  /* planes of an image: (height, width), and two of half the size */
    Py_ssize_t height, width, top, left, rows, columns;  /* of the image, and of the part of it to convert */
    int16_t *colour;  /* (3, 2 * halves): what is added to a row of luma */
    uint8_t *out;  /* (3, rows, columns) */
} Yuv;

INLINED void added(const uint8_t *restrict luma, const int16_t *restrict colour, uint8_t *restrict out, Py_ssize_t columns) {
    for (Py_ssize_t at = 0; at < columns; at++) {
        int16_t level = (int16_t)(luma[at] + colour[at]);
        out[at] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
    }
}

INLINED void yuv_body(const Yuv *from) {
    const Yuv own = *from;  /* a copy, which bytes that are written cannot be part of */
    Py_ssize_t halves = (own.left + own.columns + 1) / 2 - own.left / 2, whole = 2 * halves;
    Py_ssize_t last = -1, half_width = (own.width + 1) / 2;
    for (Py_ssize_t row = 0; row < own.rows; row++) {
        Py_ssize_t under = (own.top + row) / 2;
        if (under != last) {
            const uint8_t *cb = own.cb + under * half_width + own.left / 2, *cr = own.cr + under * half_width + own.left / 2;
            for (Py_ssize_t at = 0; at < halves; at++) {
                int16_t *colour = own.colour + 2 * at;
                colour[0] = colour[1] = red_of[cr[at]];
                colour[whole] = colour[whole + 1] = (int16_t)((green_of_cb[cb[at]] + green_of_cr[cr[at]] + 32) >> 6);
                colour[2 * whole] = colour[2 * whole + 1] = blue_of[cb[at]];
            }
            last = under;
        }
        const uint8_t *luma = own.luma + (own.top + row) * own.width + own.left;
        for (int band = 0; band < 3; band++)
            added(luma, own.colour + band * whole + own.left % 2, own.out + (band * own.rows + row) * own.columns, own.columns);
    }
}
DEFINE(yuv, (const Yuv *own), (own))

/* ---- Python ---- */

typedef struct {
    Py_buffer in, out;
    Py_ssize_t pixels;
} Images;

/* Checks the two images of `pixels` pixels; sets an exception. */
static int usable(Images *images) {
    images->pixels = images->in.len / 3;
    if (images->in.len == images->out.len && images->in.len == images->pixels * 3) return 1;
    PyErr_SetString(PyExc_ValueError, "expected two images (H, W, 3) of one size");
    return 0;
}

static PyObject *released(Images *images, int is_done) {
    PyBuffer_Release(&images->in);
    PyBuffer_Release(&images->out);
    if (!is_done) return NULL;
    Py_RETURN_NONE;
}

static PyObject *py_lookup(PyObject *self, PyObject *args) {
    Images images;
    Py_buffer tables;
    if (!PyArg_ParseTuple(args, "y*w*y*", &images.in, &images.out, &tables)) return NULL;
    int done = usable(&images) && tables.len == 768;
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        lookup(images.in.buf, images.out.buf, images.pixels, tables.buf);
        Py_END_ALLOW_THREADS
    } else if (!PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "expected three tables of 256 levels");
    }
    PyBuffer_Release(&tables);
    return released(&images, done);
}

static PyObject *by_histogram(PyObject *args, void (*table_of)(const int64_t *, uint8_t *)) {
    Images images;
    if (!PyArg_ParseTuple(args, "y*w*", &images.in, &images.out)) return NULL;
    int done = usable(&images);
    if (done) {
        int64_t counts[768];
        uint8_t tables[768];
        Py_BEGIN_ALLOW_THREADS
        histogram(images.in.buf, images.pixels, counts);
        for (int band = 0; band < 768; band += 256) table_of(counts + band, tables + band);
        lookup(images.in.buf, images.out.buf, images.pixels, tables);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

static PyObject *py_autocontrast(PyObject *self, PyObject *args) {
    return by_histogram(args, stretched);
}

static PyObject *py_equalize(PyObject *self, PyObject *args) {
    return by_histogram(args, equalized);
}

static PyObject *py_color(PyObject *self, PyObject *args) {
    Images images;
    float share;
    if (!PyArg_ParseTuple(args, "y*w*f", &images.in, &images.out, &share)) return NULL;
    int done = usable(&images);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        blend_with_luma(images.in.buf, images.out.buf, images.pixels, share);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

static PyObject *py_hue(PyObject *self, PyObject *args) {
    Images images;
    int turn;
    if (!PyArg_ParseTuple(args, "y*w*i", &images.in, &images.out, &turn)) return NULL;
    int done = usable(&images);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        hue(images.in.buf, images.out.buf, images.pixels, turn);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

/* Operations of torchvision's ColorJitter, the first of `in` and the others of their own result. */
static void jitter_as_torch(const uint8_t *in, uint8_t *out, Py_ssize_t pixels, const int *operations, const double *factors, int number) {
    for (int at = 0; at < number; at++, in = out) {
        float own = (float)factors[at], other = (float)(1.0 - factors[at]);
        int64_t sum;
        switch (operations[at]) {
        case 0:
            blend_as_torch(in, out, pixels, own, 0.0f, 0.0f);
            break;
        case 1:
            grey_sum_as_torch(in, pixels, &sum);
            blend_as_torch(in, out, pixels, own, (float)sum / (float)pixels, other);
            break;
        case 2:
            saturate_as_torch(in, out, pixels, own, other);
            break;
        default:
            hue_as_torch(in, out, pixels, own);
        }
    }
}

static PyObject *py_jitter_as_torch(PyObject *self, PyObject *args) {
    enum { MOST = 4 };
    Images images;
    PyObject *steps;
    int operations[MOST];
    double factors[MOST];
    if (!PyArg_ParseTuple(args, "y*w*O!", &images.in, &images.out, &PyTuple_Type, &steps)) return NULL;
    Py_ssize_t number = PyTuple_GET_SIZE(steps);
    int done = usable(&images) && number > 0 && number <= MOST;
    if (!done && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "expected 1 to 4 steps");
    for (Py_ssize_t at = 0; at < number && done; at++)
        done = PyArg_ParseTuple(PyTuple_GET_ITEM(steps, at), "id", operations + at, factors + at);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        jitter_as_torch(images.in.buf, images.out.buf, images.pixels, operations, factors, (int)number);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

static PyObject *py_planes(PyObject *self, PyObject *args) {
    Images images;
    if (!PyArg_ParseTuple(args, "y*w*", &images.in, &images.out)) return NULL;
    int done = usable(&images);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
#ifdef WIDE
        if (has_avx2) planes_wide(images.in.buf, images.out.buf, images.pixels);
        else
#endif
            planes_from(images.in.buf, images.out.buf, 0, images.pixels);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

static PyObject *sum_of(PyObject *args, void (*summed)(const uint8_t *, Py_ssize_t, int64_t *)) {
    Py_buffer in;
    int64_t sum;
    if (!PyArg_ParseTuple(args, "y*", &in)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    summed(in.buf, in.len / 3, &sum);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&in);
    return PyLong_FromLongLong(sum);
}

static PyObject *py_luma_sum(PyObject *self, PyObject *args) {
    return sum_of(args, luma_sum);
}

static PyObject *py_sharpness(PyObject *self, PyObject *args) {
    Images images;
    float share;
    Py_ssize_t width;
    if (!PyArg_ParseTuple(args, "y*w*nf", &images.in, &images.out, &width, &share)) return NULL;
    int done = usable(&images) && width > 0;
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        sharpen(images.in.buf, images.out.buf, images.pixels / width, width, share);
        Py_END_ALLOW_THREADS
    }
    return released(&images, done);
}

static PyObject *py_transform(PyObject *self, PyObject *args) {
    Images images;
    Transformation how;
    double *m = how.m;
    if (!PyArg_ParseTuple(
            args, "y*w*i(dddddd)(bbb)p", &images.in, &images.out, &how.width, m, m + 1, m + 2, m + 3, m + 4, m + 5, how.fill,
            how.fill + 1, how.fill + 2, &how.is_cubic
        ))
        return NULL;
    int done = usable(&images) && how.width > 0;
    if (done) {
        how.height = (int)(images.pixels / how.width);
        how.row = 4 * (how.width + 2 * MARGIN);
        uint8_t *space = PyMem_RawMalloc((size_t)(how.height + 2 * MARGIN) * how.row);
        how.in = space;
        if (space) {
            Py_BEGIN_ALLOW_THREADS
            spread(images.in.buf, space, how.height, how.width);
#ifdef WIDE
            if (has_avx2) transform_wide(&how, images.out.buf);
            else
#endif
                transform_exactly(&how, images.out.buf);
            Py_END_ALLOW_THREADS
            PyMem_RawFree(space);
        } else {
            PyErr_NoMemory();
            done = 0;
        }
    }
    return released(&images, done);
}

static PyObject *py_rgb_of_yuv420(PyObject *self, PyObject *args) {
    Py_buffer in, out;
    Yuv own;
    if (!PyArg_ParseTuple(args, "y*w*(nn)(nnnn)", &in, &out, &own.height, &own.width, &own.top, &own.left, &own.rows, &own.columns))
        return NULL;
    Py_ssize_t pixels = own.height * own.width, half = ((own.height + 1) / 2) * ((own.width + 1) / 2);
    int fits = own.top >= 0 && own.left >= 0 && own.rows > 0 && own.columns > 0 && own.top + own.rows <= own.height &&
               own.left + own.columns <= own.width && in.len == pixels + 2 * half && out.len == 3 * own.rows * own.columns;
    own.colour = fits ? malloc(3 * sizeof(int16_t) * (own.columns + 2)) : NULL;
    if (!fits) PyErr_SetString(PyExc_ValueError, "expected a block of (H, W) in YUV 4:2:0 and a result (3, rows, columns) of a part of it");
    else if (own.colour == NULL) PyErr_NoMemory();
    else {
        own.luma = in.buf, own.cb = own.luma + pixels, own.cr = own.cb + half, own.out = out.buf;
        Py_BEGIN_ALLOW_THREADS
        yuv(&own);
        Py_END_ALLOW_THREADS
        free(own.colour);
    }
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"rgb_of_yuv420", py_rgb_of_yuv420, METH_VARARGS, "rgb_of_yuv420(block, result, (H, W), (top, left, rows, columns))"},
    {"planes", py_planes, METH_VARARGS, "planes(image, result): (H, W, 3) to (3, H, W)."},
    {"lookup", py_lookup, METH_VARARGS, "lookup(image, result, tables): levels by three tables of 256."},
    {"autocontrast", py_autocontrast, METH_VARARGS, "autocontrast(image, result)"},
    {"equalize", py_equalize, METH_VARARGS, "equalize(image, result)"},
    {"luma_sum", py_luma_sum, METH_VARARGS, "luma_sum(image): sum of the grey levels of convert('L')."},
    {"color", py_color, METH_VARARGS, "color(image, result, factor)"},
    {"hue", py_hue, METH_VARARGS, "hue(image, result, turn): by 255ths of the circle."},
    {"sharpness", py_sharpness, METH_VARARGS, "sharpness(image, result, width, factor)"},
    {"transform", py_transform, METH_VARARGS, "transform(image, result, width, matrix, fill, is_cubic)"},
    {"jitter_as_torch", py_jitter_as_torch, METH_VARARGS,
     "jitter_as_torch(image, result, steps): (operation, factor) each, 0 brightness, 1 contrast, 2 saturation, 3 hue."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_pixels", "Operations on 8-bit RGB pixels.", -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pixels(void) {
    make_colours();
#if defined(__x86_64__) && defined(__GNUC__)
    has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    make_gathers();
#endif
    return PyModule_Create(&MODULE);
}
