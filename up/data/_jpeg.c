/* A part of a JPEG file, through the libjpeg-turbo that Pillow decodes with: the same pixels as a full decode, less work.

   Nothing is linked: `load` finds the functions of the library in Pillow's own extension module, so that both use one library and
   a wheel needs none. Only its header is needed when this file is compiled; libjpeg compares the version and the size of the
   structure at run time, and refuses another one.

   Huffman decoding, most of the work that is left, is done by _jpeg_entropy.h in the library's place. The library calls that
   function through a pointer in a structure of its own, which the public header does not declare. Three checks make that safe:
   `replace` expects the addresses of two functions of this very library where all versions of libjpeg have the pointer; it compares
   the pixels of a sample; and other files get the replacement only where both addresses are those of the sample's decoder, which
   decodes sequential Huffman codes and nothing else.

   Every error and every warning of libjpeg ends the work with None: the caller then decodes the whole file with Pillow, which
   decides what is a bad image. The GIL is released while libjpeg works. */

#define _GNU_SOURCE /* dladdr */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2000000
#error "the header of libjpeg-turbo 2.0 or newer is needed"
#endif

#include "_jpeg_entropy.h"

#if JPEG_LIB_VERSION >= 70
#define min_DCT_scaled_size min_DCT_h_scaled_size
#endif

#define MARGIN 4 /* columns decoded on each side of the part: smooth chroma takes the colour of its neighbours into account */
#define SPARE 48 /* columns of the output beside the part: both margins, and up to 31 that lead to a boundary of blocks */

static struct {
    struct jpeg_error_mgr *(*std_error)(struct jpeg_error_mgr *);
    void (*create)(j_decompress_ptr, int, size_t);
    void (*memory)(j_decompress_ptr, const unsigned char *, unsigned long);
    int (*header)(j_decompress_ptr, boolean);
    boolean (*start)(j_decompress_ptr);
    void (*crop)(j_decompress_ptr, JDIMENSION *, JDIMENSION *);
    JDIMENSION (*skip)(j_decompress_ptr, JDIMENSION);
    JDIMENSION (*read)(j_decompress_ptr, JSAMPARRAY, JDIMENSION);
    void (*destroy)(j_decompress_ptr);
} jpeg;

static const struct {
    const char *name;
    void **target;
} SYMBOLS[] = {
    {"jpeg_std_error", (void **)&jpeg.std_error},
    {"jpeg_CreateDecompress", (void **)&jpeg.create},
    {"jpeg_mem_src", (void **)&jpeg.memory},
    {"jpeg_read_header", (void **)&jpeg.header},
    {"jpeg_start_decompress", (void **)&jpeg.start},
    {"jpeg_crop_scanline", (void **)&jpeg.crop},
    {"jpeg_skip_scanlines", (void **)&jpeg.skip},
    {"jpeg_read_scanlines", (void **)&jpeg.read},
    {"jpeg_destroy_decompress", (void **)&jpeg.destroy},
};

static Decoder replaced; /* the library's decoder of sequential Huffman codes, which ours replaces; NULLs as long as it does not */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf end;
    char message[JMSG_LENGTH_MAX];
} Errors;

static void on_error(j_common_ptr info)
{
    Errors *errors = (Errors *)info->err;
    errors->base.format_message(info, errors->message);
    longjmp(errors->end, 1);
}

static void on_message(j_common_ptr info, int level)
{
    if (level < 0) /* a warning: damaged data */
        on_error(info);
}

static void silent(j_common_ptr info) { (void)info; }

static struct jpeg_error_mgr *handlers(Errors *errors)
{
    jpeg.std_error(&errors->base);
    errors->base.error_exit = on_error;
    errors->base.emit_message = on_message;
    errors->base.output_message = silent;
    errors->message[0] = 0;
    return &errors->base;
}

/* See its text in METHODS. */
static PyObject *load(PyObject *self, PyObject *args)
{
    const char *path;
    struct jpeg_decompress_struct info;
    Errors errors;
    (void)self;
    if (!PyArg_ParseTuple(args, "s", &path))
        return NULL;
    void *library = dlopen(path, RTLD_LAZY | RTLD_LOCAL); /* stays open */
    if (library == NULL)
        return PyErr_Format(PyExc_OSError, "%s", dlerror());
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof *SYMBOLS; i++) {
        *SYMBOLS[i].target = dlsym(library, SYMBOLS[i].name);
        if (*SYMBOLS[i].target == NULL) {
            jpeg.create = NULL;
            return PyErr_Format(PyExc_OSError, "%s has no %s", path, SYMBOLS[i].name);
        }
    }
    memset(&info, 0, sizeof info);
    info.err = handlers(&errors);
    if (setjmp(errors.end)) {
        jpeg.create = NULL;
        return PyErr_Format(PyExc_OSError, "%s", errors.message);
    }
    jpeg.create(&info, JPEG_LIB_VERSION, sizeof info);
    jpeg.destroy(&info);
    Py_RETURN_NONE;
}

static unsigned uint16_at(const unsigned char *at) { return (unsigned)at[0] << 8 | at[1]; }

/* Whether a marker segment changes neither the orientation nor the mode in which Pillow opens the file. */
static int is_plain(unsigned marker, const unsigned char *body, size_t length)
{
    switch (marker) {
    case 0xC4: /* Huffman tables */
    case 0xDD: /* restart interval */
    case 0xFE: /* comment */
        return 1;
    case 0xE0:
        return length == 14 && memcmp(body, "JFIF", 5) == 0;
    case 0xDB: /* quantization tables of 8 bits */
        for (; length >= 65 && body[0] < 4; length -= 65)
            body += 65;
        return length == 0;
    default:
        return 0;
    }
}

/* Whether the entropy-coded data of the only scan, from `at`, last until the end mark, with nothing but restart marks within. */
static int is_whole(const unsigned char *at, const unsigned char *end)
{
    while ((at = memchr(at, 0xFF, (size_t)(end - at))) != NULL && at + 1 < end) {
        unsigned marker = at[1];
        if (marker == 0xD9)
            return 1;
        if (marker != 0 && (marker < 0xD0 || marker > 0xD7))
            return 0;
        at += 2;
    }
    return 0;
}

typedef struct {
    unsigned height, width;
    int plain;
} Frame;

/* Read the frame header; 0 for files that are left to Pillow. */
static int frame_of(const unsigned char *data, size_t size, Frame *frame)
{
    unsigned components = 0;
    int sequential = 0;
    frame->plain = 1;
    if (size < 4 || data[0] != 0xFF || data[1] != 0xD8)
        return 0;
    const unsigned char *at = data + 2, *end = data + size;
    while (end - at >= 4 && at[0] == 0xFF) {
        unsigned marker = at[1], length = uint16_at(at + 2);
        const unsigned char *body = at + 4;
        if (marker < 0xC0 || (marker >= 0xD0 && marker <= 0xD9) || marker == 0xFF) /* no segment, or a fill byte */
            return 0;
        if (length < 2 || (size_t)(end - at) < 2 + (size_t)length)
            return 0;
        if (marker == 0xDA) {
            if (components == 0 || length < 3)
                return 0;
            const int is_only_scan = sequential && body[0] == components;
            return !is_only_scan || is_whole(at + 2 + length, end);
        }
        if (marker <= 0xC2) { /* baseline, extended or progressive; all others are left to Pillow */
            if (components != 0 || length < 8 || body[0] != 8 || length != 8 + 3 * (unsigned)body[5])
                return 0;
            frame->height = uint16_at(body + 1), frame->width = uint16_at(body + 3);
            components = body[5], sequential = marker != 0xC2;
            if (frame->height == 0 || frame->width == 0 || (components != 1 && components != 3))
                return 0;
        } else if (marker == 0xC3 || (marker >= 0xC5 && marker <= 0xCF)) {
            return 0;
        } else if (!is_plain(marker, body, length - 2)) {
            frame->plain = 0;
        }
        at += 2 + length;
    }
    return 0;
}

/* See its text in METHODS. */
static PyObject *frame(PyObject *self, PyObject *args)
{
    Py_buffer data;
    Frame found = {0, 0, 0};
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &data))
        return NULL;
    int usable = frame_of(data.buf, (size_t)data.len, &found);
    PyBuffer_Release(&data);
    if (!usable)
        Py_RETURN_NONE;
    return Py_BuildValue("IIO", found.height, found.width, found.plain ? Py_True : Py_False);
}

typedef struct {
    unsigned top, left, height, width;
} Box;

/* Decode rows of `box` into `out`, whose rows are `stride` bytes apart. Returns the column of `out` at which the box starts, at
   most SPARE - MARGIN; -1 for a box that is not within the image. */
static int read_rows(j_decompress_ptr info, Box box, size_t stride, unsigned char *out)
{
    if (box.height == 0 || box.width == 0 || (size_t)box.top + box.height > info->output_height ||
        (size_t)box.left + box.width > info->output_width)
        return -1;
    JDIMENSION from = box.left > MARGIN ? box.left - MARGIN : 0, columns = info->output_width - from;
    if (columns > box.left - from + box.width + MARGIN)
        columns = box.left - from + box.width + MARGIN;
    if (columns < info->output_width) {
        jpeg.crop(info, &from, &columns); /* moves `from` to the left, to a boundary of blocks */
        if (info->client_data != NULL)
            need_columns(info->client_data, info, from, columns);
    }
    if ((size_t)columns * 3 > stride)
        return -1;
    if (box.top > 0)
        jpeg.skip(info, box.top);
    for (unsigned y = 0; y < box.height; y++, out += stride)
        if (jpeg.read(info, &out, 1) != 1)
            return -1;
    return (int)(box.left - from);
}

/* Prepare `info` for decoding `data` into rows of RGB. */
static void start(j_decompress_ptr info, const unsigned char *data, size_t size, unsigned scale)
{
    jpeg.create(info, JPEG_LIB_VERSION, sizeof *info);
    jpeg.memory(info, data, (unsigned long)size);
    jpeg.header(info, TRUE);
    info->scale_num = 1;
    info->scale_denom = scale;
    info->out_color_space = JCS_RGB;
    jpeg.start(info);
}

/* Whether a progressive file, once it is read, lacks scans: libjpeg then smooths blocks by those around them, which may be beside
   the part. */
static int lacks_scans(const struct jpeg_decompress_struct *info)
{
    for (int i = 0; info->coef_bits != NULL && i < info->num_components; i++)
        for (int k = 0; k < DCTSIZE2; k++)
            if (info->coef_bits[i][k] != 0) /* number of the lowest bits of a coefficient that are missing; -1: all */
                return 1;
    return 0;
}

/* Decode `box`, in pixels of the image divided by `scale`, as `read_rows` does; -1 for any doubt. Our Huffman decoder is used in
   place of `library`. */
static int decode_into(const unsigned char *data, size_t size, unsigned scale, Box box, size_t stride, unsigned char *out,
                       Decoder library)
{
    struct jpeg_decompress_struct info;
    Errors errors;
    Entropy own;
    memset(&info, 0, sizeof info);
    info.err = handlers(&errors);
    if (setjmp(errors.end)) {
        jpeg.destroy(&info);
        return -1;
    }
    start(&info, data, size, scale);
    Decoder *decoder = (Decoder *)info.entropy;
    if (library.decode_mcu != NULL && decoder->start_pass == library.start_pass && decoder->decode_mcu == library.decode_mcu &&
        pays(&info, size))
        replace_decoder(&own, &info, decoder);
    const int column = lacks_scans(&info) ? -1 : read_rows(&info, box, stride, out);
    jpeg.destroy(&info);
    return column;
}

/* The decoder that libjpeg uses for `data`, if ours can replace it; NULLs otherwise. */
static Decoder replaceable(const unsigned char *data, size_t size)
{
    struct jpeg_decompress_struct info;
    Errors errors;
    Entropy own;
    Dl_info library, found;
    Decoder none = {NULL, NULL}, decoder, ours;
    memset(&info, 0, sizeof info);
    info.err = handlers(&errors);
    if (setjmp(errors.end)) {
        jpeg.destroy(&info);
        return none;
    }
    start(&info, data, size, 1);
    memcpy(&decoder, info.entropy, sizeof decoder);
    const int usable = replace_decoder(&own, &info, &ours) && dladdr((void *)jpeg.create, &library) &&
                       dladdr((void *)decoder.start_pass, &found) && found.dli_fbase == library.dli_fbase &&
                       dladdr((void *)decoder.decode_mcu, &found) && found.dli_fbase == library.dli_fbase;
    jpeg.destroy(&info);
    return usable ? decoder : none;
}

/* Whether both decoders give the same pixels in `box`; `memory` is for two images. */
static int agree(const unsigned char *data, size_t size, Box box, unsigned char *memory, Decoder library)
{
    const size_t stride = ((size_t)box.width + SPARE) * 3, bytes = stride * box.height;
    const Decoder none = {NULL, NULL};
    memset(memory, 0, 2 * bytes);
    const int column = decode_into(data, size, 1, box, stride, memory, none);
    return column >= 0 && decode_into(data, size, 1, box, stride, memory + bytes, library) == column &&
           memcmp(memory, memory + bytes, bytes) == 0;
}

/* See its text in METHODS. */
static PyObject *replace(PyObject *self, PyObject *args)
{
    Py_buffer data;
    Frame found = {0, 0, 0};
    (void)self;
    if (!PyArg_ParseTuple(args, "y*", &data))
        return NULL;
    Decoder library = {NULL, NULL};
    if (jpeg.create != NULL && frame_of(data.buf, (size_t)data.len, &found))
        library = replaceable(data.buf, (size_t)data.len);
    if (library.decode_mcu != NULL) {
        const Box whole = {0, 0, found.height, found.width}, part = {found.height / 2, found.width / 2, 1, 1};
        unsigned char *memory = PyMem_Malloc(2 * ((size_t)found.width + SPARE) * 3 * found.height);
        if (memory == NULL || !agree(data.buf, (size_t)data.len, whole, memory, library) ||
            !agree(data.buf, (size_t)data.len, part, memory, library))
            library.decode_mcu = NULL;
        PyMem_Free(memory);
    }
    PyBuffer_Release(&data);
    replaced = library;
    return PyBool_FromLong(library.decode_mcu != NULL);
}

/* See its text in METHODS. */
static PyObject *decode(PyObject *self, PyObject *args)
{
    Py_buffer data, out;
    unsigned scale;
    Box box;
    int column = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*IIIIIw*", &data, &scale, &box.top, &box.left, &box.height, &box.width, &out))
        return NULL;
    const size_t stride = ((size_t)box.width + SPARE) * 3;
    const int fits = (size_t)out.len == stride * box.height && jpeg.create != NULL;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        column = decode_into(data.buf, (size_t)data.len, scale, box, stride, out.buf, replaced);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!fits)
        return PyErr_Format(PyExc_ValueError, "out: expected (height, width + %d, 3) of bytes, after load()", SPARE);
    return PyLong_FromLong(column);
}

static PyMethodDef METHODS[] = {
    {"load", load, METH_VARARGS,
     "load(path)\n\n"
     "Find libjpeg-turbo in a shared object and its dependencies. Raises OSError where it is missing or has another ABI."},
    {"replace", replace, METH_VARARGS,
     "replace(sample) -> bool\n\n"
     "Decode Huffman codes here from now on, if the library's decoder can be replaced for this file and both give the same "
     "pixels, or by the library alone. Returns which."},
    {"frame", frame, METH_VARARGS,
     "frame(data) -> (height, width, plain), or None for files that are left to Pillow\n\n"
     "`plain`: no segment tells Pillow of another orientation or mode."},
    {"decode", decode, METH_VARARGS,
     "decode(data, scale, top, left, height, width, out) -> column\n\n"
     "Decode a box, in pixels of the image divided by `scale`, into out (height, width + SPARE, 3), where it starts at `column`; "
     "-1 for a file that is left to Pillow. Raises ValueError for an `out` of another size."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_jpeg", "Parts of JPEG files.", -1, METHODS, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__jpeg(void)
{
    PyObject *module = PyModule_Create(&MODULE);
    if (module != NULL && PyModule_AddIntConstant(module, "SPARE", SPARE) < 0)
        Py_CLEAR(module);
    return module;
}
