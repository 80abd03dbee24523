/* The functions of an exported network. export_c.py takes those that a network calls, each with the
   lines above it up to an empty one, and puts the words of its first layer in for PATCH_WORDS. */

/* How many bits are 1. */
#ifdef __POPCNT__
#define popcount(word) __builtin_popcountll(word)
#else
static int popcount(uint64_t word)
{
    word -= word >> 1 & UINT64_C(0x5555555555555555);
    word = (word & UINT64_C(0x3333333333333333)) + (word >> 2 & UINT64_C(0x3333333333333333));
    word = (word + (word >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
    return (int) (word * UINT64_C(0x0101010101010101) >> 56);
}
#endif

/* Sums of pixels times weights of +1 and -1, by the eight bit planes of the pixels: twice what the
   bits of the weights select, less the sum of all pixels. Volatile, here and below: gcc 11 and 12
   get the loop over the outputs wrong where they compute several at once by AVX-512. */
static void pixel_sums(const uint8_t *pixels, int height, int width, int channels, int kernel_h,
                       int kernel_w, int stride, int padding, int outputs, int words,
                       const uint64_t *weights, volatile int32_t *sums)
{
    static uint64_t planes[8][PATCH_WORDS];
    int out_h = (height + 2 * padding - kernel_h) / stride + 1;
    int out_w = (width + 2 * padding - kernel_w) / stride + 1;
    for (int i = 0; i < out_h; ++i)
        for (int j = 0; j < out_w; ++j) {
            int32_t total = 0;
            int place = 0;
            for (int plane = 0; plane < 8; ++plane)
                for (int k = 0; k < words; ++k) planes[plane][k] = 0;
            for (int p = 0; p < kernel_h; ++p)
                for (int q = 0; q < kernel_w; ++q)
                    for (int c = 0; c < channels; ++c, ++place) {
                        int y = i * stride + p - padding, x = j * stride + q - padding;
                        unsigned pixel = 0;
                        if (y >= 0 && y < height && x >= 0 && x < width)
                            pixel = pixels[(c * height + y) * width + x];
                        total += (int32_t) pixel;
                        for (int plane = 0; plane < 8; ++plane)
                            planes[plane][place / 64] |= (uint64_t) (pixel >> plane & 1)
                                                         << place % 64;
                    }
            for (int o = 0; o < outputs; ++o) {
                const uint64_t *weight = weights + (long) o * words;
                int32_t selected = 0;
                for (int plane = 0; plane < 8; ++plane) {
                    int32_t ones = 0;
                    for (int k = 0; k < words; ++k) ones += popcount(planes[plane][k] & weight[k]);
                    selected += ones * (1 << plane);
                }
                *sums++ = 2 * selected - total;
            }
        }
}

/* Sums of +1 and -1 times weights of +1 and -1: places that differ count -1, the others +1. A pixel
   is some words, around the image stands the pixel "around". */
static void bit_sums(const uint64_t *bits, int height, int width, int words, int kernel_h,
                     int kernel_w, int stride, int padding, const uint64_t *around, int outputs,
                     int length, const uint64_t *weights, volatile int32_t *sums)
{
    int out_h = (height + 2 * padding - kernel_h) / stride + 1;
    int out_w = (width + 2 * padding - kernel_w) / stride + 1;
    for (int i = 0; i < out_h; ++i)
        for (int j = 0; j < out_w; ++j) {
            const uint64_t *weight = weights;
            for (int o = 0; o < outputs; ++o) {
                int32_t differing = 0;
                for (int p = 0; p < kernel_h; ++p)
                    for (int q = 0; q < kernel_w; ++q, weight += words) {
                        int y = i * stride + p - padding, x = j * stride + q - padding;
                        const uint64_t *seen = around;
                        if (y >= 0 && y < height && x >= 0 && x < width)
                            seen = bits + (long) (y * width + x) * words;
                        for (int k = 0; k < words; ++k) differing += popcount(seen[k] ^ weight[k]);
                    }
                *sums++ = length - 2 * differing;
            }
        }
}

/* The largest sum of each window, in place: what is written lies before what is read later. */
static void pool(int32_t *sums, int height, int width, int outputs, int kernel, int stride)
{
    int32_t *out = sums;
    for (int i = 0; i + kernel <= height; i += stride)
        for (int j = 0; j + kernel <= width; j += stride)
            for (int o = 0; o < outputs; ++o) {
                int32_t largest = sums[(i * width + j) * outputs + o];
                for (int p = 0; p < kernel; ++p)
                    for (int q = 0; q < kernel; ++q) {
                        int32_t sum = sums[((i + p) * width + j + q) * outputs + o];
                        if (sum > largest) largest = sum;
                    }
                *out++ = largest;
            }
}

/* Batch normalisation and sign: a bit is 1 where a sum reaches its threshold, or, where "falling"
   says so, where it does not. */
static void compare(const int32_t *sums, int places, int outputs, const int32_t *thresholds,
                    const uint64_t *falling, uint64_t *bits)
{
    for (int place = 0; place < places; ++place)
        for (int first = 0; first < outputs; first += 64) {
            uint64_t word = falling[first / 64];
            for (int o = first; o < outputs && o < first + 64; ++o)
                word ^= (uint64_t) (sums[o - first] >= thresholds[o]) << (o - first);
            sums += outputs - first < 64 ? outputs - first : 64;
            *bits++ = word;
        }
}
