/* Huffman decoding of a JPEG scan in place of libjpeg-turbo's: the same coefficients in half of its time, and in a third of it for
   blocks that nobody needs.

   Replaced is `decode_mcu`, the function that libjpeg-turbo calls once for every minimum coded unit (MCU) of a row that it reads,
   and with NULL for those of a row that it skips. All else stays the library's: markers, inverse transform, upsampling, colours.

   - The data are copied without their stuffed zeros, a chunk at a time, and padded. However wrong they are, one MCU takes at most
     MCU_BYTES, so that no bound needs a check within it. Whether it took more than there is, is checked when it ends.
   - One look at the next PAIR bits gives two coefficients, their places and values.
   - Of blocks that are not transformed, those of skipped rows and of columns beside the part, only the difference of DC is decoded.
     One look at the next LOOK bits passes over all AC symbols whose codes they contain.

   It is used only for sequential files of 8 bits with all components in one scan and without restarts. Any irregularity of the data
   is an error: the caller decodes the file in another way, as after a warning of the library. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINED static inline __attribute__((always_inline))
#define LOOK 12 /* bits */
#define PAIR 10
#define LOOK_DC 9
#define COUNTED 56 /* bits that `refill` counts at least */
#define PAIRS (COUNTED / PAIR) /* looks until the next `refill` */
#define SKIPS (COUNTED / (LOOK + 15)) /* the same, where the value of the last symbol may follow the LOOK bits */
#define MCU_BYTES (D_MAX_BLOCKS_IN_MCU * 64 * 31 / 8) /* 64 symbols a block: codes of up to 16 bits, values of up to 15 */
#define PADDING (MCU_BYTES + 32) /* `refill` reads up to 16 bytes beyond, and the MCU before may have ended 8 beyond the data */
#define CHUNK 16384
#define SMALL 16384 /* bytes: a file as large saves the time that its own tables take to build */

#define END 128u /* steps of an entry that ends a block */
#define ALONE 64u /* steps of an entry that decides nothing: the next symbol is decoded alone */
#define LONG (192u << 24) /* entry of `one` for codes that are longer, and for bits that begin no code */

/* The first members of struct jpeg_entropy_decoder in jpegint.h, which is not installed everywhere. */
typedef struct {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
} Decoder;

typedef struct {
    int is_built;
    UINT8 lengths[17], symbols[256]; /* as in the file: number of codes of each length, symbols in the order of their codes */
    uint32_t limit[17];              /* of each length: the next 16 bits are below for codes of this length, and for shorter ones */
    int offset[17];                  /* of each length: index of a symbol, less its code */
} Code;

/* "Steps" lead from one coefficient to the next one that is not zero: a run of zeros, and 1. Entries, from the lowest bits up:
   one:  8 bits: number of bits of a code and its value; 8: of the code; 8: of the value; 8: steps.
   many: 8 bits: number of bits of all symbols; 8: steps of all, END more at the end of the block.
   pair: 8 bits: number of bits of both; 8: steps of both; 16: steps of the first; 16: its value; 16: value of the second. Without a
         second symbol, the first stands for both. */
typedef struct {
    Code code;
    uint32_t one[1 << LOOK];
    uint16_t many[1 << LOOK];
    uint64_t pair[1 << PAIR];
} AcTable;

typedef struct {
    Code code;
    uint32_t one[1 << LOOK_DC];
} DcTable;

typedef struct {
    uint64_t bits;           /* the next bits, from the highest down: `count` of them; below, those at `at` or zeros */
    unsigned count;          /* at most 63 */
    const unsigned char *at; /* the bytes after those counted */
} Bits;

typedef struct {
    Bits bits;
    const unsigned char *end, *safe;  /* of the bytes; whatever an MCU that begins before `safe` reads is within them */
    const unsigned char *next, *last; /* what remains of the file */
    int is_begun, blocks;             /* blocks of an MCU */
    JDIMENSION column, columns, first, beyond; /* in MCUs: the next one, and number of a row; columns that are transformed */
    uint32_t dc[MAX_COMPS_IN_SCAN];
    struct {
        const DcTable *dc;
        const AcTable *ac;
        int component;
    } kinds[D_MAX_BLOCKS_IN_MCU];
    unsigned char bytes[CHUNK + PADDING];
} Entropy;

/* Tables of the thread's last file: most files have those of the standard. */
static _Thread_local struct {
    AcTable ac[2];
    DcTable dc[2];
    size_t passed; /* bytes of small files that were left to the library since */
} tables;

/* Places of the coefficients, with 63 for all steps beyond: there, nothing but 0 is written. */
static const unsigned char PLACES[END + ALONE] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
    63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63, 63,
};

INLINED unsigned bits_of(uint32_t entry) { return entry & 63; }
INLINED unsigned code_bits_of(uint32_t entry) { return entry >> 8 & 31; }
INLINED unsigned value_bits_of(uint32_t entry) { return entry >> 16 & 15; }
INLINED unsigned steps_of(uint32_t entry) { return entry >> 24; }

/* The entry of an AC symbol: run and size. */
static uint32_t ac_entry(unsigned symbol, unsigned length)
{
    const unsigned size = symbol & 15, run = symbol >> 4;
    return (length + size) | length << 8 | size << 16 | (size != 0 || run == 15 ? run + 1 : END) << 24;
}

static uint32_t dc_entry(unsigned symbol, unsigned length) { return (length + symbol) | length << 8 | symbol << 16; }

/* The value whose `size` bits are the highest of `bits`: those that begin with 0 are negative (ISO/IEC 10918-1, F.2.2.1). */
INLINED int32_t value_of(uint64_t bits, unsigned size)
{
    const int32_t magnitude = (int32_t)(bits >> 1 >> (63 - size)), is_negative = ~(int32_t)((int64_t)bits >> 63);
    return magnitude + (is_negative & (1 - (int32_t)(1u << size)));
}

/* Assign codes to the symbols of `table` (ISO/IEC 10918-1, C.2), and fill the entries of those of up to `look` bits. Returns 0 for
   more codes than there are: none is all ones. */
static int build_code(Code *code, const JHUFF_TBL *table, unsigned look, uint32_t *one, uint32_t (*entry)(unsigned, unsigned))
{
    unsigned next = 0, index = 0;
    memcpy(code->lengths, table->bits, sizeof code->lengths);
    memcpy(code->symbols, table->huffval, sizeof code->symbols);
    for (unsigned i = 0; i < 1u << look; i++)
        one[i] = LONG;
    for (unsigned length = 1; length <= 16; length++, next <<= 1) {
        if (index + code->lengths[length] > 256 || next + code->lengths[length] >= 1u << length)
            return 0;
        for (unsigned i = 0; i < code->lengths[length]; i++, next++, index++)
            for (unsigned j = 0; length <= look && j < 1u << (look - length); j++)
                one[(next << (look - length)) + j] = entry(code->symbols[index], length);
        code->limit[length] = next << (16 - length);
        code->offset[length] = (int)index - (int)next;
    }
    return 1;
}

static int is_of(const Code *code, const JHUFF_TBL *table)
{
    return code->is_built && memcmp(code->lengths, table->bits, sizeof code->lengths) == 0 &&
           memcmp(code->symbols, table->huffval, sizeof code->symbols) == 0;
}

/* Build a table, unless it is there; 0 for an invalid one. */
static int build_dc(DcTable *dc, const JHUFF_TBL *table)
{
    if (is_of(&dc->code, table))
        return 1;
    dc->code.is_built = build_code(&dc->code, table, LOOK_DC, dc->one, dc_entry);
    for (int i = 0; i < 256; i++)
        if (dc->code.symbols[i] > 15)
            dc->code.is_built = 0;
    return dc->code.is_built;
}

static uint16_t many_of(const uint32_t *one, unsigned bits)
{
    unsigned used = 0, steps = 0;
    while (used < LOOK && steps < END) {
        const uint32_t entry = one[bits << used & ((1u << LOOK) - 1)];
        if (entry == LONG || used + code_bits_of(entry) > LOOK || (steps_of(entry) != END && steps + steps_of(entry) > 63))
            break;
        used += bits_of(entry);
        steps += steps_of(entry);
    }
    return (uint16_t)(steps == 0 ? ALONE << 8 : steps << 8 | used);
}

static uint64_t pair_of(const uint32_t *one, unsigned bits)
{
    const uint64_t next = (uint64_t)bits << (64 - PAIR);
    const uint32_t first = one[next >> (64 - LOOK)];
    if (first == LONG || bits_of(first) > PAIR)
        return ALONE << 8;
    if (steps_of(first) == END)
        return bits_of(first) | END << 8 | 63 << 16; /* writes 0 to the last coefficient, which is 0 */
    const uint64_t rest = next << bits_of(first);
    const uint32_t second = one[rest >> (64 - LOOK)];
    const uint64_t steps = steps_of(first), value = (uint16_t)value_of(next << code_bits_of(first), value_bits_of(first));
    if (second == LONG || bits_of(first) + bits_of(second) > PAIR)
        return bits_of(first) | steps << 8 | steps << 16 | value << 32 | value << 48;
    const uint64_t other = (uint16_t)value_of(rest << code_bits_of(second), value_bits_of(second));
    return (bits_of(first) + bits_of(second)) | (steps + steps_of(second)) << 8 | steps << 16 | value << 32 | other << 48;
}

static int build_ac(AcTable *ac, const JHUFF_TBL *table)
{
    if (is_of(&ac->code, table))
        return 1;
    ac->code.is_built = build_code(&ac->code, table, LOOK, ac->one, ac_entry);
    for (unsigned i = 0; i < 1u << LOOK; i++)
        ac->many[i] = many_of(ac->one, i);
    for (unsigned i = 0; i < 1u << PAIR; i++)
        ac->pair[i] = pair_of(ac->one, i);
    return ac->code.is_built;
}

/* Return the symbol of a code of more than `look` bits, and its length; 256 if there is none. */
static unsigned long_symbol(const Code *code, uint64_t bits, unsigned look, unsigned *length)
{
    const uint32_t next = (uint32_t)(bits >> 48);
    for (*length = look + 1; *length <= 16; ++*length)
        if (next < code->limit[*length])
            return code->symbols[(int)(next >> (16 - *length)) + code->offset[*length]];
    return 256;
}

INLINED uint64_t eight_bytes(const unsigned char *at)
{
    return (uint64_t)at[0] << 56 | (uint64_t)at[1] << 48 | (uint64_t)at[2] << 40 | (uint64_t)at[3] << 32 | (uint64_t)at[4] << 24 |
           (uint64_t)at[5] << 16 | (uint64_t)at[6] << 8 | (uint64_t)at[7];
}

/* Count at least COUNTED bits, and at most 63. */
INLINED void refill(Bits *bits)
{
    bits->bits |= eight_bytes(bits->at) >> bits->count;
    bits->at += (63 - bits->count) >> 3;
    bits->count |= COUNTED;
}

INLINED void drop(Bits *bits, unsigned number)
{
    bits->bits <<= number & 63;
    bits->count -= number & 63;
}

/* Decode a difference of DC; 0 for bad data. */
INLINED int difference(Bits *bits, const DcTable *dc, uint32_t *value)
{
    refill(bits);
    uint32_t entry = dc->one[bits->bits >> (64 - LOOK_DC)];
    if (entry == LONG) {
        unsigned length, symbol = long_symbol(&dc->code, bits->bits, LOOK_DC, &length);
        if (symbol > 15)
            return 0;
        entry = dc_entry(symbol, length);
    }
    *value = (uint32_t)value_of(bits->bits << code_bits_of(entry), value_bits_of(entry));
    drop(bits, bits_of(entry));
    return 1;
}

/* Decode one AC symbol after coefficient `k`: the coefficient it leads to, 64 at the end of the block, 0 for bad data. */
INLINED unsigned one_step(Bits *bits, const AcTable *ac, unsigned k, JCOEF *block)
{
    refill(bits);
    uint32_t entry = ac->one[bits->bits >> (64 - LOOK)];
    if (entry == LONG) {
        unsigned length, symbol = long_symbol(&ac->code, bits->bits, LOOK, &length);
        if (symbol > 255)
            return 0;
        entry = ac_entry(symbol, length);
    }
    const JCOEF value = (JCOEF)value_of(bits->bits << code_bits_of(entry), value_bits_of(entry));
    drop(bits, bits_of(entry));
    k += steps_of(entry);
    if (block != NULL && k <= 63)
        block[PLACES[k]] = value; /* 0 after 16 zeros */
    return k >= END || k == 63 ? 64 : k < 63 ? k : 0;
}

/* Whether a block ends with an entry that leads to `k`: at its last coefficient, or with a mark before. Otherwise the last symbols
   of the entry may be those of another block. */
INLINED int is_end(unsigned k) { return k == 63 || (k >= END && k < END + 63); }

/* Decode the AC coefficients of a block, which are zero; 0 for bad data. */
INLINED int decode_block(Bits *bits, const AcTable *ac, JCOEF *block)
{
    for (unsigned k = 0;;) {
        refill(bits);
        for (int i = 0; i < PAIRS; i++) {
            const uint64_t entry = ac->pair[bits->bits >> (64 - PAIR)];
            const unsigned next = k + (entry >> 8 & 255), first = k + (entry >> 16 & 255);
            if (next >= 63 && !is_end(next)) {
                k = one_step(bits, ac, k, block);
                if (k == 0 || k == 64)
                    return k == 64;
                break;
            }
            drop(bits, (unsigned)entry);
            block[PLACES[next]] = (JCOEF)(entry >> 48);
            block[PLACES[first]] = (JCOEF)(entry >> 32);
            if (next >= 63)
                return 1;
            k = next;
        }
    }
}

/* Pass over the AC coefficients of a block; 0 for bad data. */
INLINED int skip_block(Bits *bits, const AcTable *ac)
{
    for (unsigned k = 0;;) {
        refill(bits);
        for (int i = 0; i < SKIPS; i++) {
            const unsigned entry = ac->many[bits->bits >> (64 - LOOK)], next = k + (entry >> 8);
            if (next >= 63 && !is_end(next)) {
                k = one_step(bits, ac, k, NULL);
                if (k == 0 || k == 64)
                    return k == 64;
                break;
            }
            drop(bits, entry);
            if (next >= 63)
                return 1;
            k = next;
        }
    }
}

/* Fill the chunk with what follows in the file, without the zero after each 0xFF. A marker ends the data; zeros follow them. */
static void fill(Entropy *own)
{
    const size_t kept = own->bits.at < own->end ? (size_t)(own->end - own->bits.at) : 0;
    unsigned char *to = own->bytes + kept;
    int is_ended = 0;
    memmove(own->bytes, own->bits.at, kept);
    own->bits.at = own->bytes;
    while (!is_ended && to < own->bytes + CHUNK) {
        const size_t room = (size_t)(own->bytes + CHUNK - to), left = (size_t)(own->last - own->next);
        const size_t most = room < left ? room : left;
        const unsigned char *found = memchr(own->next, 0xFF, most);
        const size_t plain = found == NULL ? most : (size_t)(found - own->next);
        memcpy(to, own->next, plain);
        to += plain;
        own->next += plain;
        if (found != NULL && left - plain >= 2 && found[1] == 0) {
            *to++ = 0xFF;
            own->next += 2;
        } else {
            is_ended = found != NULL || plain == left;
        }
    }
    own->end = to;
    if (is_ended)
        memset(to, 0, PADDING);
    own->safe = is_ended ? own->bytes + sizeof own->bytes : to - PADDING;
}

/* Report irregular data as the library does an error: the function does not return. */
static void irregular(j_decompress_ptr info) { info->err->error_exit((j_common_ptr)info); }

/* Decode an MCU, as the library's function does: its blocks, which are zero, get coefficients in natural order, not yet multiplied
   by the quantization table. */
INLINED boolean decode_unit(j_decompress_ptr info, JBLOCKROW *blocks)
{
    Entropy *own = info->client_data;
    if (!own->is_begun) {
        own->is_begun = 1;
        own->next = info->src->next_input_byte;
        own->last = own->next + info->src->bytes_in_buffer;
        own->bits.at = own->end = own->safe = own->bytes;
    }
    if (own->bits.at >= own->safe)
        fill(own);
    const int is_needed = blocks != NULL && own->column >= own->first && own->column < own->beyond;
    if (++own->column == own->columns)
        own->column = 0;
    Bits bits = own->bits;
    for (int i = 0; i < own->blocks; i++) {
        uint32_t value = 0;
        if (!difference(&bits, own->kinds[i].dc, &value))
            irregular(info);
        value = own->dc[own->kinds[i].component] += value;
        if (is_needed)
            blocks[i][0][0] = (JCOEF)value;
        if (!(is_needed ? decode_block(&bits, own->kinds[i].ac, blocks[i][0]) : skip_block(&bits, own->kinds[i].ac)))
            irregular(info);
    }
    if (bits.at > own->end && (size_t)(bits.at - own->end) * 8 > bits.count)
        irregular(info); /* it took more bits than there are */
    own->bits = bits;
    return TRUE;
}

static boolean decode_mcu(j_decompress_ptr info, JBLOCKROW *blocks) { return decode_unit(info, blocks); }

#ifdef __x86_64__
/* The same with shifts of one operation instead of three. */
__attribute__((target("bmi2"))) static boolean decode_mcu_bmi2(j_decompress_ptr info, JBLOCKROW *blocks)
{
    return decode_unit(info, blocks);
}
#endif

/* Whether the tables of `info` are those of the thread's last file. */
static int has_tables(const struct jpeg_decompress_struct *info)
{
    for (int i = 0; i < info->comps_in_scan; i++) {
        const int dc = info->cur_comp_info[i]->dc_tbl_no, ac = info->cur_comp_info[i]->ac_tbl_no;
        if (dc < 0 || dc > 1 || ac < 0 || ac > 1 || info->dc_huff_tbl_ptrs[dc] == NULL || info->ac_huff_tbl_ptrs[ac] == NULL ||
            !is_of(&tables.dc[dc].code, info->dc_huff_tbl_ptrs[dc]) || !is_of(&tables.ac[ac].code, info->ac_huff_tbl_ptrs[ac]))
            return 0;
    }
    return 1;
}

/* Whether a file of `size` bytes pays for its tables: they are there, it is large, or it is time to keep those of small files. */
static int pays(const struct jpeg_decompress_struct *info, size_t size)
{
    if (size >= SMALL || has_tables(info))
        return 1;
    tables.passed += size;
    if (tables.passed < 4 * SMALL)
        return 0;
    tables.passed = 0;
    return 1;
}

/* Set up `own`, and let it replace `decoder`, that of a file whose decompression was started; 0 for files that are left to the
   library. */
static int replace_decoder(Entropy *own, j_decompress_ptr info, Decoder *decoder)
{
    if (info->progressive_mode || info->arith_code || info->data_precision != 8 || info->restart_interval != 0 ||
        info->comps_in_scan != info->num_components)
        return 0;
    memset(own, 0, offsetof(Entropy, bytes));
    own->blocks = info->blocks_in_MCU;
    own->columns = own->beyond = info->MCUs_per_row;
    for (int i = 0; i < own->blocks; i++) {
        const jpeg_component_info *component = info->cur_comp_info[info->MCU_membership[i]];
        const int dc = component->dc_tbl_no, ac = component->ac_tbl_no;
        if (dc < 0 || dc > 1 || ac < 0 || ac > 1 || info->dc_huff_tbl_ptrs[dc] == NULL || info->ac_huff_tbl_ptrs[ac] == NULL ||
            !build_dc(&tables.dc[dc], info->dc_huff_tbl_ptrs[dc]) || !build_ac(&tables.ac[ac], info->ac_huff_tbl_ptrs[ac]))
            return 0;
        own->kinds[i].dc = &tables.dc[dc], own->kinds[i].ac = &tables.ac[ac];
        own->kinds[i].component = info->MCU_membership[i];
    }
    info->client_data = own;
    decoder->decode_mcu = decode_mcu;
#ifdef __x86_64__
    if (__builtin_cpu_supports("bmi2"))
        decoder->decode_mcu = decode_mcu_bmi2;
#endif
    return 1;
}

/* Decode coefficients only in the columns that jpeg_crop_scanline chose: `from`, a boundary of MCUs, and `width` of them. */
static void need_columns(Entropy *own, j_decompress_ptr info, JDIMENSION from, JDIMENSION width)
{
    const JDIMENSION size = (JDIMENSION)(info->min_DCT_scaled_size * info->max_h_samp_factor);
    if (info->num_components == 1 && info->max_h_samp_factor != 1)
        return; /* MCUs of one block whatever the factor, which not every version of the library takes into account */
    own->first = from / size;
    own->beyond = (from + width + size - 1) / size;
}
