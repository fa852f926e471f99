/*
 * CRC32C (Castagnoli, reflected polynomial 0x82f63b78): the digest of a stream.
 *
 * Folds 256 bytes at a time by carry-less multiplication where there are 512-bit ones
 * (VPCLMULQDQ); else uses the processor's CRC instruction (SSE4.2, ARMv8 CRC), with three
 * streams interleaved, because the instruction has a latency of three cycles and a
 * throughput of one a cycle; else a table of eight slices.
 */
#ifndef VFIOFLOW_CRC32C_H
#define VFIOFLOW_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VFIOFLOW_CRC_POLY 0x82f63b78u
#define VFIOFLOW_CRC_LANE 4096u     /* bytes of each interleaved stream; three fit a 16 KiB stretch of L1 */

static uint32_t vfioflow_crc_slice[8][256];
static uint32_t vfioflow_crc_skip[4][256];  /* advances a CRC over VFIOFLOW_CRC_LANE zero bytes */
static int vfioflow_crc_hardware;           /* 0: the table; 1: the instruction; 2: folding */

static uint32_t vfioflow_crc_software(uint32_t crc, const uint8_t *p, size_t n)
{
    while (n && ((uintptr_t)p & 7)) {
        crc = vfioflow_crc_slice[0][(crc ^ *p++) & 0xff] ^ (crc >> 8);
        n--;
    }
    while (n >= 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = vfioflow_crc_slice[7][low & 0xff] ^ vfioflow_crc_slice[6][(low >> 8) & 0xff] ^
              vfioflow_crc_slice[5][(low >> 16) & 0xff] ^ vfioflow_crc_slice[4][low >> 24] ^
              vfioflow_crc_slice[3][p[4]] ^ vfioflow_crc_slice[2][p[5]] ^
              vfioflow_crc_slice[1][p[6]] ^ vfioflow_crc_slice[0][p[7]];
        p += 8;
        n -= 8;
    }
    while (n--)
        crc = vfioflow_crc_slice[0][(crc ^ *p++) & 0xff] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
#define VFIOFLOW_CRC_TARGET __attribute__((target("sse4.2")))
#define VFIOFLOW_CRC_64(crc, word) ((uint32_t)_mm_crc32_u64((crc), (word)))
#define VFIOFLOW_CRC_8(crc, byte) _mm_crc32_u8((crc), (byte))
#define VFIOFLOW_CRC_PROBE() __builtin_cpu_supports("sse4.2")
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#define VFIOFLOW_CRC_TARGET __attribute__((target("+crc")))
#define VFIOFLOW_CRC_64(crc, word) __crc32cd((crc), (word))
#define VFIOFLOW_CRC_8(crc, byte) __crc32cb((crc), (byte))
#define VFIOFLOW_CRC_PROBE() ((getauxval(AT_HWCAP) >> 7) & 1)
#endif

#ifdef VFIOFLOW_CRC_TARGET
static inline uint32_t vfioflow_crc_over_zeros(uint32_t crc)
{
    return vfioflow_crc_skip[0][crc & 0xff] ^ vfioflow_crc_skip[1][(crc >> 8) & 0xff] ^
           vfioflow_crc_skip[2][(crc >> 16) & 0xff] ^ vfioflow_crc_skip[3][crc >> 24];
}

static inline uint64_t vfioflow_crc_word(const uint8_t *p)
{
    uint64_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

VFIOFLOW_CRC_TARGET static uint32_t vfioflow_crc_instruction(uint32_t crc, const uint8_t *p, size_t n)
{
    while (n >= 3 * VFIOFLOW_CRC_LANE) {
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < VFIOFLOW_CRC_LANE; i += 8) {
            crc = VFIOFLOW_CRC_64(crc, vfioflow_crc_word(p + i));
            second = VFIOFLOW_CRC_64(second, vfioflow_crc_word(p + VFIOFLOW_CRC_LANE + i));
            third = VFIOFLOW_CRC_64(third, vfioflow_crc_word(p + 2 * VFIOFLOW_CRC_LANE + i));
        }
        crc = vfioflow_crc_over_zeros(crc) ^ second;
        crc = vfioflow_crc_over_zeros(crc) ^ third;
        p += 3 * VFIOFLOW_CRC_LANE;
        n -= 3 * VFIOFLOW_CRC_LANE;
    }
    for (; n >= 8; p += 8, n -= 8)
        crc = VFIOFLOW_CRC_64(crc, vfioflow_crc_word(p));
    while (n--)
        crc = VFIOFLOW_CRC_8(crc, *p++);
    return crc;
}
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#define VFIOFLOW_CRC_FOLD 256               /* bytes in the four registers that fold */

/* Reflected remainders of x^(n + 32) and x^(n - 32), n being the bits that a fold goes over (Gopal et
 * al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel, 2009). */
static uint64_t vfioflow_crc_fold_key[2];

static uint64_t vfioflow_crc_power(unsigned n)
{
    uint32_t rest = 0x80000000u;            /* 1, reflected */
    while (n--)
        rest = (rest >> 1) ^ (VFIOFLOW_CRC_POLY & (0u - (rest & 1)));
    return (uint64_t)rest << 1;
}

__attribute__((target("avx512f,vpclmulqdq"))) static inline __m512i
vfioflow_crc_fold_once(__m512i sum, __m512i key, const uint8_t *next)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(sum, key, 0x00),
                                     _mm512_clmulepi64_epi128(sum, key, 0x11),
                                     _mm512_loadu_si512(next), 0x96);   /* the three XORed */
}

__attribute__((target("avx512f,vpclmulqdq"))) static uint32_t
vfioflow_crc_folding(uint32_t crc, const uint8_t *p, size_t n)
{
    if (n >= 4 * VFIOFLOW_CRC_FOLD) {
        uint8_t sums[VFIOFLOW_CRC_FOLD];
        const __m512i key = _mm512_broadcast_i32x4(
            _mm_set_epi64x((long long)vfioflow_crc_fold_key[1], (long long)vfioflow_crc_fold_key[0]));
        __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
        __m512i b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
        for (p += sizeof sums, n -= sizeof sums; n >= sizeof sums; p += sizeof sums, n -= sizeof sums) {
            a = vfioflow_crc_fold_once(a, key, p);
            b = vfioflow_crc_fold_once(b, key, p + 64);
            c = vfioflow_crc_fold_once(c, key, p + 128);
            d = vfioflow_crc_fold_once(d, key, p + 192);
        }
        _mm512_storeu_si512(sums, a);
        _mm512_storeu_si512(sums + 64, b);
        _mm512_storeu_si512(sums + 128, c);
        _mm512_storeu_si512(sums + 192, d);
        crc = vfioflow_crc_instruction(0, sums, sizeof sums);
    }
    return vfioflow_crc_instruction(crc, p, n);
}
#endif

/* The CRC32C of what `crc` stands for (0: nothing) followed by n bytes. */
static inline uint32_t vfioflow_crc32c(uint32_t crc, const void *data, size_t n)
{
#if defined(__x86_64__)
    if (vfioflow_crc_hardware == 2)
        return ~vfioflow_crc_folding(~crc, (const uint8_t *)data, n);
#endif
#ifdef VFIOFLOW_CRC_TARGET
    if (vfioflow_crc_hardware)
        return ~vfioflow_crc_instruction(~crc, (const uint8_t *)data, n);
#endif
    return ~vfioflow_crc_software(~crc, (const uint8_t *)data, n);
}

/* Fills the tables; once, before the first use.  Takes the fastest way up to `most` that there is. */
static inline void vfioflow_crc32c_setup(int most)
{
    static uint8_t zeros[VFIOFLOW_CRC_LANE];
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (VFIOFLOW_CRC_POLY & (0u - (crc & 1)));
        vfioflow_crc_slice[0][i] = crc;
    }
    for (int slice = 1; slice < 8; slice++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = vfioflow_crc_slice[slice - 1][i];
            vfioflow_crc_slice[slice][i] = vfioflow_crc_slice[0][crc & 0xff] ^ (crc >> 8);
        }
    /* A CRC is linear: the effect of zeros on each bit of the state gives it for all states. */
    uint32_t column[32];
    for (int bit = 0; bit < 32; bit++)
        column[bit] = vfioflow_crc_software(1u << bit, zeros, sizeof zeros);
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if (i >> bit & 1)
                    crc ^= column[8 * byte + bit];
            vfioflow_crc_skip[byte][i] = crc;
        }
#ifdef VFIOFLOW_CRC_TARGET
    vfioflow_crc_hardware = most >= 1 && VFIOFLOW_CRC_PROBE();
#else
    (void)most;
#endif
#if defined(__x86_64__)
    vfioflow_crc_fold_key[0] = vfioflow_crc_power(8 * VFIOFLOW_CRC_FOLD + 32);
    vfioflow_crc_fold_key[1] = vfioflow_crc_power(8 * VFIOFLOW_CRC_FOLD - 32);
    if (most >= 2 && vfioflow_crc_hardware && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("vpclmulqdq"))
        vfioflow_crc_hardware = 2;
#endif
}

#endif
