/*
 * CRC32C (Castagnoli, reflected polynomial 0x82f63b78): the digest of a stream.
 *
 * Uses the processor's instruction where there is one (SSE4.2, ARMv8 CRC), with three
 * streams interleaved, because the instruction has a latency of three cycles and a
 * throughput of one a cycle; elsewhere a table of eight slices.
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
static int vfioflow_crc_hardware;

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

/* The CRC32C of what `crc` stands for (0: nothing) followed by n bytes. */
static inline uint32_t vfioflow_crc32c(uint32_t crc, const void *data, size_t n)
{
#ifdef VFIOFLOW_CRC_TARGET
    if (vfioflow_crc_hardware)
        return ~vfioflow_crc_instruction(~crc, (const uint8_t *)data, n);
#endif
    return ~vfioflow_crc_software(~crc, (const uint8_t *)data, n);
}

/* Fills the tables; once, before the first use.  hardware=0 forces the tables (for tests). */
static inline void vfioflow_crc32c_setup(int hardware)
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
    vfioflow_crc_hardware = hardware && VFIOFLOW_CRC_PROBE();
#else
    (void)hardware;
#endif
}

#endif
