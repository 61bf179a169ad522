#include "modinv.h"

#include <string.h>

typedef __int128 wide;

enum { LIMBS = 5, BITS = 62 };
#define LOW62 (UINT64_MAX >> 2)

/* Signed integers sum(limb[i] 2^(62 i)); all limbs but the top are in 0 .. 2^62 - 1 between the steps. */
typedef struct {
    int64_t limb[LIMBS];
} signed62;

/* Product of 62 divsteps, times 2^62: (f, g) -> (u f + v g, q f + r g) / 2^62. |u| + |v| and |q| + |r| <= 2^62. */
typedef struct {
    int64_t u, v, q, r;
} transition;

/* p = 2^256 - 2^32 - 977 and n, in limbs of 62 bits. */
const fl_modulus FL_MODULUS_P = {
    .limbs62 = {0x3ffffffefffffc2f, 0x3fffffffffffffff, 0x3fffffffffffffff, 0x3fffffffffffffff, 0xff},
    .inverse62 = UINT64_C(0x27c7f6e22ddacacf),
};
const fl_modulus FL_MODULUS_N = {
    .limbs62 = {0x3fd25e8cd0364141, 0x2abb739abd2280ee, 0x3fffffffffffffeb, 0x3fffffffffffffff, 0xff},
    .inverse62 = UINT64_C(0x34f20099aa774ec1),
};

/* 62 divsteps on the low words of f (odd) and g. `eta` is minus delta of the paper. Runs of zeros of g are shifted
 * out at once; while eta lets f stay, up to four low bits of g are cleared by one multiple of f, and up to six
 * after a swap. */
static int64_t divsteps(transition *t, int64_t eta, uint64_t f, uint64_t g)
{
    uint64_t u = 1, v = 0, q = 0, r = 1;
    int left = BITS;

    for (;;) {
        int zeros = __builtin_ctzll(g | UINT64_MAX << left); /* the sentinel stops at the steps that are left */
        g >>= zeros;
        u <<= zeros;
        v <<= zeros;
        eta -= zeros;
        left -= zeros;
        if (left == 0)
            break;
        uint64_t multiple;
        int swapped = eta < 0;
        if (swapped) {
            uint64_t old_f = f, old_u = u, old_v = v;
            eta = -eta;
            f = g, g = -old_f;
            u = q, q = -old_u;
            v = r, r = -old_v;
        }
        int room = eta + 1 > left ? left : (int)eta + 1; /* bits that may be cleared before f has to change */
        uint64_t mask = UINT64_MAX >> (64 - room);
        if (swapped) {
            multiple = f * g * (f * f - 2) & mask & 63; /* -g / f modulo 64 */
        } else {
            uint64_t inverse = f + (((f + 1) & 4) << 1); /* 1 / f modulo 16 */
            multiple = -inverse * g & mask & 15;
        }
        g += f * multiple;
        q += u * multiple;
        r += v * multiple;
    }
    *t = (transition){(int64_t)u, (int64_t)v, (int64_t)q, (int64_t)r};
    return eta;
}

/* (f, g) = (u f + v g, q f + r g) / 2^62, exact. Each column is below 2^62 (2^62 + 2^62) + carry < 2^126. */
static void update_fg(signed62 *f, signed62 *g, const transition *t)
{
    wide cf = 0, cg = 0;
    for (int i = 0; i < LIMBS; i++) {
        int64_t fi = f->limb[i], gi = g->limb[i];
        cf += (wide)t->u * fi + (wide)t->v * gi;
        cg += (wide)t->q * fi + (wide)t->r * gi;
        if (i > 0) {
            f->limb[i - 1] = (int64_t)((uint64_t)cf & LOW62);
            g->limb[i - 1] = (int64_t)((uint64_t)cg & LOW62);
        }
        cf >>= BITS;
        cg >>= BITS;
    }
    f->limb[LIMBS - 1] = (int64_t)cf;
    g->limb[LIMBS - 1] = (int64_t)cg;
}

/* out = (a d + b e) / 2^62 modulo the modulus m, by adding the multiple of m that clears the low bits.
 * With d, e in (-2m, m): adding m to a negative one first (a m or b m in `clear`), and less than 2^62 m taken
 * away at last, keeps the result in (-2m, m). */
static signed62 combine_de(int64_t a, int64_t b, const signed62 *d, const signed62 *e, const fl_modulus *m)
{
    int64_t clear = (d->limb[LIMBS - 1] < 0 ? a : 0) + (e->limb[LIMBS - 1] < 0 ? b : 0);
    uint64_t low = (uint64_t)a * (uint64_t)d->limb[0] + (uint64_t)b * (uint64_t)e->limb[0];
    clear -= (int64_t)((m->inverse62 * low + (uint64_t)clear) & LOW62);

    signed62 out;
    wide column = 0;
    for (int i = 0; i < LIMBS; i++) {
        column += (wide)a * d->limb[i] + (wide)b * e->limb[i] + (wide)m->limbs62[i] * clear;
        if (i > 0)
            out.limb[i - 1] = (int64_t)((uint64_t)column & LOW62);
        column >>= BITS;
    }
    out.limb[LIMBS - 1] = (int64_t)column;
    return out;
}

static void update_de(signed62 *d, signed62 *e, const transition *t, const fl_modulus *modulus)
{
    signed62 new_d = combine_de(t->u, t->v, d, e, modulus);
    *e = combine_de(t->q, t->r, d, e, modulus);
    *d = new_d;
}

static int is_zero62(const signed62 *a)
{
    return (a->limb[0] | a->limb[1] | a->limb[2] | a->limb[3] | a->limb[4]) == 0;
}

static void carry62(signed62 *a)
{
    for (int i = 0; i < LIMBS - 1; i++) {
        a->limb[i + 1] += a->limb[i] >> BITS; /* arithmetic: rounds down */
        a->limb[i] &= (int64_t)LOW62;
    }
}

/* Brings a in (-2m, m) to +-a in [0, m). */
static void normalise62(signed62 *a, int negate, const fl_modulus *modulus)
{
    int add = a->limb[LIMBS - 1] < 0;
    for (int i = 0; i < LIMBS; i++) {
        a->limb[i] += add ? modulus->limbs62[i] : 0; /* now in (-m, m) */
        a->limb[i] = negate ? -a->limb[i] : a->limb[i];
    }
    carry62(a);
    if (a->limb[LIMBS - 1] < 0) {
        for (int i = 0; i < LIMBS; i++)
            a->limb[i] += modulus->limbs62[i];
        carry62(a);
    }
}

static void to62(signed62 *out, const uint64_t a[4])
{
    out->limb[0] = (int64_t)(a[0] & LOW62);
    out->limb[1] = (int64_t)((a[0] >> 62 | a[1] << 2) & LOW62);
    out->limb[2] = (int64_t)((a[1] >> 60 | a[2] << 4) & LOW62);
    out->limb[3] = (int64_t)((a[2] >> 58 | a[3] << 6) & LOW62);
    out->limb[4] = (int64_t)(a[3] >> 56);
}

static void from62(uint64_t out[4], const signed62 *a)
{
    const int64_t *l = a->limb;
    out[0] = (uint64_t)l[0] | (uint64_t)l[1] << 62;
    out[1] = (uint64_t)l[1] >> 2 | (uint64_t)l[2] << 60;
    out[2] = (uint64_t)l[2] >> 4 | (uint64_t)l[3] << 58;
    out[3] = (uint64_t)l[3] >> 6 | (uint64_t)l[4] << 56;
}

void fl_modinv(uint64_t out[4], const uint64_t a[4], const fl_modulus *modulus)
{
    signed62 d = {{0}}, e = {{1}}, f, g;
    int64_t eta = -1;

    memcpy(f.limb, modulus->limbs62, sizeof f.limb);
    to62(&g, a);
    while (!is_zero62(&g)) { /* invariant: d a = f and e a = g, modulo the modulus */
        transition t;
        eta = divsteps(&t, eta, (uint64_t)f.limb[0] | (uint64_t)f.limb[1] << BITS,
                       (uint64_t)g.limb[0] | (uint64_t)g.limb[1] << BITS);
        update_de(&d, &e, &t, modulus);
        update_fg(&f, &g, &t);
    }
    normalise62(&d, f.limb[LIMBS - 1] < 0, modulus); /* f is 1 or -1; for a = 0 it is the modulus, and d 0 */
    from62(out, &d);
}
