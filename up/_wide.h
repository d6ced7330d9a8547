/* DEFINE(name, (parameters), (arguments)): the function `name`, of the body `name##_body` compiled twice: for any processor, and
 * for those with AVX2, where the module has set `has_avx2`. Bodies are INLINED. Both give the same numbers with
 * -ffp-contract=off: a fused multiply-add rounds once less. */
#ifdef __GNUC__
#define INLINED static inline __attribute__((always_inline))
#else
#define INLINED static inline
#endif
#if defined(__x86_64__) && defined(__GNUC__)
static int has_avx2;
#define WIDE __attribute__((target("avx2,fma")))
#define DEFINE(name, parameters, arguments)                            \
    WIDE static void name##_wide parameters { name##_body arguments; } \
    static void name parameters {                                      \
        if (has_avx2) name##_wide arguments;                           \
        else name##_body arguments;                                    \
    }
#else
#define DEFINE(name, parameters, arguments) \
    static void name parameters { name##_body arguments; }
#endif
