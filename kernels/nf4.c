/* The NF4 quantizer (Dettmers et al., "QLoRA", 2023), equal to bitsandbytes' CUDA quantizer. */
#include <math.h>

#include "core/dtype.h"
#include "kernels/weight.h"

enum { BLOCK = 64, NESTED_BLOCK = 256 };

const float nb_nf4_code[16] = {
    -1.0f,                 -0.6961928009986877f, -0.5250730514526367f,  -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f,  0.16093020141124725f, 0.24611230194568634f,  0.33791524171829224f,
    0.44070982933044434f,  0.5626170039176941f,  0.7229568362236023f,   1.0f,
};

/* A scaled value q gets the index of the first threshold it does not exceed. These are bitsandbytes' literals; some
 * lie one unit in the last place beside the middle of their two levels, so they are not computed from the code. */
static const float thresholds[15] = {
    -0.8480964004993439f,  -0.6106329262256622f,   -0.4599952697753906f, -0.33967943489551544f, -0.23460740596055984f,
    -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f, 0.1202552504837513f,   0.2035212516784668f,
    0.2920137718319893f,   0.3893125355243683f,    0.5016634166240692f,  0.6427869200706482f,   0.8614784181118011f,
};

/* create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8): for each i in 0..6 the middles of 2^i equal
 * steps from 0.1 to 1, times 10^(i-6), with both signs; 0 and 1; sorted. tests/test_nf4.c rebuilds it. */
const float nb_dynamic_code[256] = {
    -0.992968738f, -0.978906274f, -0.96484375f, -0.950781226f,
    -0.936718762f, -0.922656238f, -0.908593774f, -0.89453125f,
    -0.880468726f, -0.866406262f, -0.852343738f, -0.838281274f,
    -0.82421875f, -0.810156226f, -0.796093762f, -0.782031238f,
    -0.767968774f, -0.75390625f, -0.739843726f, -0.725781262f,
    -0.711718798f, -0.697656274f, -0.68359375f, -0.669531226f,
    -0.655468762f, -0.641406298f, -0.627343774f, -0.61328125f,
    -0.599218726f, -0.585156262f, -0.571093798f, -0.557031274f,
    -0.54296875f, -0.528906226f, -0.514843702f, -0.500781238f,
    -0.486718714f, -0.47265625f, -0.458593726f, -0.444531262f,
    -0.430468738f, -0.416406244f, -0.40234375f, -0.388281226f,
    -0.374218762f, -0.360156238f, -0.346093744f, -0.33203125f,
    -0.317968726f, -0.303906262f, -0.289843738f, -0.275781274f,
    -0.26171875f, -0.247656241f, -0.233593747f, -0.219531253f,
    -0.205468744f, -0.19140625f, -0.177343756f, -0.163281247f,
    -0.149218753f, -0.135156244f, -0.12109375f, -0.107031256f,
    -0.0985937491f, -0.0957812592f, -0.0929687545f, -0.0901562497f,
    -0.0873437524f, -0.0845312476f, -0.0817187577f, -0.078906253f,
    -0.0760937482f, -0.0732812509f, -0.0704687461f, -0.0676562563f,
    -0.0648437515f, -0.0620312504f, -0.0592187531f, -0.0564062484f,
    -0.053593751f, -0.05078125f, -0.047968749f, -0.0451562516f,
    -0.0423437469f, -0.0395312496f, -0.0367187522f, -0.0339062512f,
    -0.0310937501f, -0.028281251f, -0.0254687499f, -0.0226562507f,
    -0.0198437516f, -0.0170312505f, -0.0142187504f, -0.0114062503f,
    -0.00971874967f, -0.00915624946f, -0.00859375019f, -0.00803124998f,
    -0.00746874977f, -0.00690625003f, -0.00634374982f, -0.00578125007f,
    -0.00521875033f, -0.00465624966f, -0.00409374991f, -0.00353124971f,
    -0.00296874996f, -0.00240624999f, -0.00184375001f, -0.00128124992f,
    -0.000943750085f, -0.000831249985f, -0.00071875006f, -0.000606250076f,
    -0.000493750034f, -0.000381250022f, -0.000268750038f, -0.000156250011f,
    -8.87499991e-05f, -6.62500024e-05f, -4.37499984e-05f, -2.12499981e-05f,
    -7.7499999e-06f, -3.25000019e-06f, -5.50000038e-07f, 0.0f,
    5.50000038e-07f, 3.25000019e-06f, 7.7499999e-06f, 2.12499981e-05f,
    4.37499984e-05f, 6.62500024e-05f, 8.87499991e-05f, 0.000156250011f,
    0.000268750038f, 0.000381250022f, 0.000493750034f, 0.000606250076f,
    0.00071875006f, 0.000831249985f, 0.000943750085f, 0.00128124992f,
    0.00184375001f, 0.00240624999f, 0.00296874996f, 0.00353124971f,
    0.00409374991f, 0.00465624966f, 0.00521875033f, 0.00578125007f,
    0.00634374982f, 0.00690625003f, 0.00746874977f, 0.00803124998f,
    0.00859375019f, 0.00915624946f, 0.00971874967f, 0.0114062503f,
    0.0142187504f, 0.0170312505f, 0.0198437516f, 0.0226562507f,
    0.0254687499f, 0.028281251f, 0.0310937501f, 0.0339062512f,
    0.0367187522f, 0.0395312496f, 0.0423437469f, 0.0451562516f,
    0.047968749f, 0.05078125f, 0.053593751f, 0.0564062484f,
    0.0592187531f, 0.0620312504f, 0.0648437515f, 0.0676562563f,
    0.0704687461f, 0.0732812509f, 0.0760937482f, 0.078906253f,
    0.0817187577f, 0.0845312476f, 0.0873437524f, 0.0901562497f,
    0.0929687545f, 0.0957812592f, 0.0985937491f, 0.107031256f,
    0.12109375f, 0.135156244f, 0.149218753f, 0.163281247f,
    0.177343756f, 0.19140625f, 0.205468744f, 0.219531253f,
    0.233593747f, 0.247656241f, 0.26171875f, 0.275781274f,
    0.289843738f, 0.303906262f, 0.317968726f, 0.33203125f,
    0.346093744f, 0.360156238f, 0.374218762f, 0.388281226f,
    0.40234375f, 0.416406244f, 0.430468738f, 0.444531262f,
    0.458593726f, 0.47265625f, 0.486718714f, 0.500781238f,
    0.514843702f, 0.528906226f, 0.54296875f, 0.557031274f,
    0.571093798f, 0.585156262f, 0.599218726f, 0.61328125f,
    0.627343774f, 0.641406298f, 0.655468762f, 0.669531226f,
    0.68359375f, 0.697656274f, 0.711718798f, 0.725781262f,
    0.739843726f, 0.75390625f, 0.767968774f, 0.782031238f,
    0.796093762f, 0.810156226f, 0.82421875f, 0.838281274f,
    0.852343738f, 0.866406262f, 0.880468726f, 0.89453125f,
    0.908593774f, 0.922656238f, 0.936718762f, 0.950781226f,
    0.96484375f, 0.978906274f, 0.992968738f, 1.0f,
};

static int nearest_level(float q) {
    int index = 0;
    for (int t = 0; t < 15; t++) index += q > thresholds[t];
    return index;
}

static void load(float *out, const void *x, nb_dtype dtype, int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        out[i] = dtype == NB_F32    ? ((const float *)x)[first + i]
                 : dtype == NB_BF16 ? nb_bf16_to_f32(((const uint16_t *)x)[first + i])
                                    : nb_f16_to_f32(((const uint16_t *)x)[first + i]);
}

void nb_nf4_quantize(uint8_t *packed, float *absmax, const void *x, nb_dtype dtype, int64_t n) {
    const int zero = 7;
    for (int64_t first = 0; first < n; first += BLOCK) {
        int64_t count = n - first < BLOCK ? n - first : BLOCK;
        float v[BLOCK] = {0}, max = 0;
        load(v, x, dtype, first, count);
        for (int i = 0; i < BLOCK; i++) max = fmaxf(max, fabsf(v[i]));
        absmax[first / BLOCK] = max;
        float scale = 1.0f / max; /* bitsandbytes multiplies by the reciprocal: not the same as dividing */
        for (int i = 0; i < BLOCK; i++) v[i] = max > 0 ? v[i] * scale : 0;
        for (int64_t i = 0; i < count; i += 2) {
            int high = nearest_level(v[i]), low = i + 1 < count ? nearest_level(v[i + 1]) : zero;
            packed[(first + i) / 2] = (uint8_t)(high << 4 | low);
        }
    }
}

/* Seven halvings of the code from its middle, then the nearer of the two neighbours left. A value just in the middle
 * stays at the index the search arrived at, which is the even one. */
static uint8_t nearest_dynamic(float x) {
    int at = 127, lower = 0, upper = 255;
    float low = nb_dynamic_code[lower], high = nb_dynamic_code[upper], value = nb_dynamic_code[at];
    for (int step = 64; step > 0; step >>= 1)
        if (x > value) low = value, lower = at, at += step, value = nb_dynamic_code[at];
        else high = value, upper = at, at -= step, value = nb_dynamic_code[at];
    if (x > value) return (uint8_t)(x > (high + value) * 0.5f ? upper : at);
    return (uint8_t)(x < (low + value) * 0.5f ? lower : at);
}

void nb_nf4_quantize_absmax(uint8_t *u8, float *nested_absmax, float *offset, const float *absmax, int64_t n_blocks) {
    /* bitsandbytes takes torch's mean, whose order of summation depends on the device; ours is the correctly rounded
     * one for practical purposes: in order, in double. */
    double sum = 0;
    for (int64_t i = 0; i < n_blocks; i++) sum += absmax[i];
    *offset = n_blocks > 0 ? (float)(sum / (double)n_blocks) : 0;
    for (int64_t first = 0; first < n_blocks; first += NESTED_BLOCK) {
        int64_t count = n_blocks - first < NESTED_BLOCK ? n_blocks - first : NESTED_BLOCK;
        float max = 0;
        for (int64_t i = 0; i < count; i++) max = fmaxf(max, fabsf(absmax[first + i] - *offset));
        nested_absmax[first / NESTED_BLOCK] = max;
        float scale = 1.0f / max;
        for (int64_t i = 0; i < count; i++)
            u8[first + i] = nearest_dynamic(max > 0 ? (absmax[first + i] - *offset) * scale : 0);
    }
}
