/* Values of an LMDB file by plain reads, each verified while it is in the processor's cache: what
 * `slab_file.py` does one by one, in one call without Python's lock.
 *
 * The checksum is XXH3 of 128 bits without a seed, as xxHash 0.8 defines it (doc/xxhash_spec.md),
 * for more than 240 bytes; python-xxhash is its twin. */
#define _GNU_SOURCE
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define STRIPE 64
#define BLOCK 1024 /* stripes of one turn through the secret */
#define MOST_PADDING 65536
#define PIECE (128 * 1024) /* read, then summed; stays in the processor's cache meanwhile */

typedef struct {
    int64_t page;     /* its first one, by number */
    int64_t length;   /* bytes that are wanted */
    int64_t padding;  /* bytes behind them, which count in its checksum */
    uint8_t checksum[16];
} Slab;

static const uint8_t SECRET[192] __attribute__((aligned(64))) = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
#define P32_1 0x9E3779B1u
#define P32_2 0x85EBCA77u
#define P32_3 0xC2B2AE3Du
#define P64_1 0x9E3779B185EBCA87u
#define P64_2 0xC2B2AE3D27D4EB4Fu
#define P64_3 0x165667B19E3779F9u
#define P64_4 0x85EBCA77C2B2AE63u
#define P64_5 0x27D4EB2F165667C5u

static const uint64_t BEGIN[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};

static inline uint64_t eight(const void *from) {
    uint64_t x;
    memcpy(&x, from, 8); /* little-endian, as all of this project's files are */
    return x;
}

#ifdef __AVX512F__
typedef __m512i Lanes;
#define LOAD(at) _mm512_loadu_si512(at)
#define STORE(at, x) _mm512_storeu_si512(at, x)
#define MIX(sums, data, key)                                                     \
    _mm512_add_epi64(_mm512_add_epi64(sums, _mm512_shuffle_epi32(data, (_MM_PERM_ENUM)0x4e)), \
                     _mm512_mul_epu32(key, _mm512_srli_epi64(key, 32)))
#elif defined(__AVX2__)
typedef __m256i Lanes;
#define LOAD(at) _mm256_loadu_si256((const __m256i *)(at))
#define STORE(at, x) _mm256_storeu_si256((__m256i *)(at), x)
#define MIX(sums, data, key)                                                     \
    _mm256_add_epi64(_mm256_add_epi64(sums, _mm256_shuffle_epi32(data, 0x4e)),   \
                     _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32)))
#endif

/* `count` stripes one after the other. */
static void accumulate(uint64_t *acc, const uint8_t *from, const uint8_t *secret, int count) {
#ifdef __AVX2__
    enum { PARTS = STRIPE / sizeof(Lanes) };
    Lanes sums[PARTS];
    for (int part = 0; part < PARTS; part++) sums[part] = LOAD((char *)acc + part * sizeof(Lanes));
    for (int i = 0; i < count; i++, from += STRIPE, secret += 8)
        for (int part = 0; part < PARTS; part++) {
            const Lanes data = LOAD(from + part * sizeof(Lanes));
            const Lanes key = data ^ LOAD(secret + part * sizeof(Lanes));
            sums[part] = MIX(sums[part], data, key);
        }
    for (int part = 0; part < PARTS; part++) STORE((char *)acc + part * sizeof(Lanes), sums[part]);
#else
    for (int i = 0; i < count; i++, from += STRIPE, secret += 8)
        for (int lane = 0; lane < 8; lane++) {
            const uint64_t data = eight(from + 8 * lane), key = data ^ eight(secret + 8 * lane);
            acc[lane ^ 1] += data;
            acc[lane] += (key & 0xffffffffu) * (key >> 32);
        }
#endif
}

static void block(uint64_t *acc, const uint8_t *from) {
    accumulate(acc, from, SECRET, BLOCK / STRIPE);
    for (int lane = 0; lane < 8; lane++) {
        acc[lane] ^= acc[lane] >> 47;
        acc[lane] = (acc[lane] ^ eight(SECRET + 128 + 8 * lane)) * P32_1;
    }
}

static uint64_t merged(const uint64_t *acc, const uint8_t *secret, uint64_t sum) {
    for (int i = 0; i < 8; i += 2) {
        const unsigned __int128 product = (unsigned __int128)(acc[i] ^ eight(secret + 8 * i)) *
                                          (acc[i + 1] ^ eight(secret + 8 * i + 8));
        sum += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    sum = (sum ^ sum >> 37) * 0x165667919E3779F9u;
    return sum ^ sum >> 32;
}

/* The last bytes of `total`, after whole blocks; `from` has 64 bytes more before it. */
static void finish(uint64_t *acc, const uint8_t *from, int64_t left, uint64_t total, uint8_t *out) {
    for (; left > BLOCK; left -= BLOCK, from += BLOCK) block(acc, from);
    accumulate(acc, from, SECRET, (int)((left - 1) / STRIPE));
    accumulate(acc, from + left - STRIPE, SECRET + 121, 1);
    const uint64_t parts[2] = {merged(acc, SECRET + 117, ~(total * P64_2)),
                               merged(acc, SECRET + 11, total * P64_1)};
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)(parts[i / 8] >> (56 - 8 * (i % 8)));
}

/* Whether the page that a slab begins with says so. */
static int is_head(const uint8_t *head, const Slab *of, int64_t needed, int64_t page_bytes) {
    uint16_t flags;
    uint32_t pages;
    memcpy(&flags, head + 10, 2);
    memcpy(&pages, head + 12, 4);
    return (int64_t)eight(head) == of->page && (flags & 15) == 4 && needed <= pages * page_bytes;
}

/* 1: it is there, every byte as its checksum says. */
static int read_slab(int file, const Slab *of, char *into, int64_t page_bytes) {
    uint8_t head[16], sum[16], tail[STRIPE + 2 * BLOCK + MOST_PADDING];
    const int64_t total = of->length + of->padding;
    if (of->length < 2 * BLOCK || of->padding > MOST_PADDING) return 0;
    uint64_t acc[8];
    memcpy(acc, BEGIN, sizeof acc);
    int64_t done = 0, at = of->page * page_bytes;
    uint8_t *padding = tail + STRIPE + 2 * BLOCK;
    for (int64_t have = 0; have < of->length;) {
        const int64_t left = of->length - have, piece = left < 2 * PIECE ? left : PIECE;
        const int is_first = have == 0, is_last = piece == left;
        const struct iovec parts[3] = {{head, is_first ? sizeof head : 0},
                                       {into + have, (size_t)piece},
                                       {padding, is_last ? (size_t)of->padding : 0}};
        const ssize_t wanted = (ssize_t)(parts[0].iov_len + parts[1].iov_len + parts[2].iov_len);
        if (preadv(file, parts, 3, at) != wanted) return 0;
        if (is_first && !is_head(head, of, total + (int64_t)sizeof head, page_bytes)) return 0;
        at += wanted;
        have += piece;
        for (; done + BLOCK <= have && done + BLOCK < total; done += BLOCK)
            block(acc, (const uint8_t *)into + done);
    }
    const int64_t left = of->length - done; /* less than two blocks */
    uint8_t *rest = padding - left;
    memcpy(rest - STRIPE, into + done - STRIPE, (size_t)(left + STRIPE));
    finish(acc, rest, left + of->padding, (uint64_t)total, sum);
    return memcmp(sum, of->checksum, sizeof sum) == 0;
}

/* Read slabs, in order, to rows of `length` bytes, `stride` apart. Returns how many of them, from the
 * first on, are there, as long as a row and as their checksums say. What the next row holds means
 * nothing. */
int chunkcache_read_slabs(int file, const Slab *slabs, int count, int64_t page_bytes, char *rows,
                          int64_t length, int64_t stride) {
    int whole = 0;
    while (whole < count && slabs[whole].length == length &&
           read_slab(file, &slabs[whole], rows + whole * stride, page_bytes))
        whole++;
    return whole;
}

/* Slabs of `count` layers as a record's header tells of them: the length of each, in eight bytes, and
 * its checksum. Where they lie is not known yet. */
void chunkcache_told_slabs(const uint8_t *told, int count, Slab *slabs) {
    for (int i = 0; i < count; i++, told += 8 + sizeof slabs->checksum) {
        slabs[i] = (Slab){.page = -1, .length = (int64_t)eight(told)};
        memcpy(slabs[i].checksum, told + 8, sizeof slabs->checksum);
    }
}

/* Note where layers of a record lie, from number `first` on, as the nodes say that stand in one leaf
 * page of LMDB 0.9 (mdb.c), the first of them that of `key`; a key is a digest and the number of a
 * layer, big-endian. Fills in pages and paddings of at most `count` slabs, whose lengths are known;
 * the page is -1 where a value has none of its own. Returns how many layers this page knows of. */
int chunkcache_find_slabs(const uint8_t *key, int digest_bytes, int64_t page_bytes, int first,
                          int count, Slab *slabs) {
    enum { HEAD = 16, NODE = 8, NUMBER = 8, LEAF = 2, LONG_VALUE = 1 };
    const uint8_t *page = key - ((uintptr_t)key & (uintptr_t)(page_bytes - 1));
    uint16_t head[2], node[4], at; /* the page's kind and where its nodes' list ends; of a node: its
                                    * value's length in two parts, kind, its key's length */
    memcpy(head, page + 10, sizeof head);
    if ((head[0] & 15) != LEAF || head[1] > page_bytes) return 0;
    int place = HEAD, found = 0;
    for (; place + 1 < head[1]; place += 2) {
        memcpy(&at, page + place, sizeof at);
        if (page + at + NODE == key) break;
    }
    for (; place + 1 < head[1] && found < count; place += 2, found++) {
        memcpy(&at, page + place, sizeof at);
        const uint8_t *name = page + at + NODE, *behind = name + digest_bytes + 2;
        if (behind + NUMBER > page + page_bytes) break;
        memcpy(node, page + at, sizeof node);
        if (node[3] != digest_bytes + 2 || memcmp(name, key, (size_t)digest_bytes) ||
            (behind[-2] << 8 | behind[-1]) != first + found)
            break;
        Slab *of = &slabs[found];
        of->padding = (node[0] | (int64_t)node[1] << 16) - of->length;
        of->page = node[2] == LONG_VALUE && of->padding >= 0 ? (int64_t)eight(behind) : -1;
    }
    return found;
}

/* Whether this is faster than its twin: it is not without vectors. */
int chunkcache_slabs_here(void) {
#ifdef __AVX2__
    return 1;
#else
    return 0;
#endif
}
