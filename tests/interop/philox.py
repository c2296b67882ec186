"""The random numbers of contract version 1, written again in numpy from include/mgr/rng.h.

Philox4x32-10: Salmon, Moraes, Dror, Shaw, SC'11. key = the seed's two halves, counter = (block,
purpose, layer, expert), word j of block b is stream element 4*b + j.
"""

import numpy as np

SAMPLE, SAMPLE_GATE, SAMPLE_UP, SAMPLE_DOWN = 0, 1, 2, 3
GATE, UP, DOWN, ROUTER, SHUFFLE = 4, 5, 6, 7, 8
REPLICA, ROUTER_NOISE = 13, 15
NOISE_GATE, NOISE_UP, NOISE_DOWN = 9, 10, 11

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def block(counter, key):
    """[4, n] uint32 counters and a pair of 32-bit keys -> [4, n] uint32."""
    c = [np.asarray(x, dtype=np.uint64) for x in counter]
    k0, k1 = (int(x) for x in key)
    for _ in range(10):
        product0, product1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (product1 >> _32) ^ c[1] ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> _32) ^ c[3] ^ np.uint64(k1),
            product0 & _LOW,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c).astype(np.uint32)


def words(seed, purpose, layer, expert, first, n):
    """Stream elements first .. first+n-1."""
    b0, b1 = first // 4, (first + n + 3) // 4
    blocks = np.arange(b0, b1, dtype=np.uint64)
    fill = lambda x: np.full(len(blocks), x, dtype=np.uint64)
    out = block([blocks, fill(purpose), fill(layer), fill(expert)], (seed & 0xFFFFFFFF, seed >> 32))
    return out.T.reshape(-1)[first - 4 * b0 :][:n]


def keys(seed, purpose, layer, expert, n):
    w = words(seed, purpose, layer, expert, 0, 2 * n).astype(np.uint64).reshape(n, 2)
    return w[:, 0] | (w[:, 1] << _32)


def sample(seed, purpose, layer, expert, population, n):
    """n of 0..population-1, ascending: those with the smallest keys, ties to the smaller index."""
    return np.sort(np.argsort(keys(seed, purpose, layer, expert, population), kind="stable")[:n])


def permutation(seed, layer, expert, n, purpose=SHUFFLE):
    return np.argsort(keys(seed, purpose, layer, expert, n), kind="stable")


def normals(seed, purpose, layer, expert, first, n):
    """Box-Muller on words 2i and 2i+1 as src/rng/normal_body.h defines it, here in float64 but for
    two conversions to float32 whose rounding is part of the definition (near u = 1 the radius is
    so steep that it decides)."""
    assert first % 2 == 0
    w = words(seed, purpose, layer, expert, first, n + n % 2).reshape(-1, 2)
    u = ((w[:, 0] & np.uint32(0x7FFFFFFF)) | np.uint32(1)).astype(np.float32).astype(np.float64) * 2.0**-31
    radius = np.sqrt(-2 * np.log(u))
    # An angle within one quarter of the circle; the two lowest bits choose which quarter.
    signed = np.ascontiguousarray(w[:, 1]).view(np.int32)
    angle = signed.astype(np.float32).astype(np.float64) * (np.pi / 4 * 2.0**-31)
    cosine = np.where(w[:, 1] & 1, -np.cos(angle), np.cos(angle))
    sine = np.sin(angle)
    swap = (w[:, 1] & 2) != 0
    cosine, sine = np.where(swap, sine, cosine), np.where(swap, cosine, sine)
    return np.stack([radius * cosine, radius * sine], axis=1).reshape(-1)[:n]
