#!/usr/bin/env python3
"""Write tests/data/golden/*.txt: the numbers of contract version 1.

This is a second implementation of the contract, from the words of include/mgr/rng.h,
include/mgr/upcycle.h and src/rng/normal_body.h, in numpy and Python integers. It shares no code
with the program, so the golden files check the program and not themselves.

usage: tools/gen/golden.py [FOLDER]       (needs numpy)
"""
import math
import os
import sys

import numpy as np

f32 = np.float32
MASK = 0xFFFFFFFF

SAMPLE, SAMPLE_GATE, GATE, ROUTER, SHUFFLE, NOISE_GATE, SYNTH = 0, 1, 4, 7, 8, 9, 12
MATRICES = ("gate", "up", "down")


def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    mask, half = np.uint64(MASK), np.uint64(32)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> half) ^ c1 ^ np.uint64(k0), p1 & mask
        c2, c3 = (p0 >> half) ^ c3 ^ np.uint64(k1), p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def words(stream, first, n):
    """As Python integers; numpy's arrays of blocks go through the same few lines."""
    seed, purpose, layer, expert = stream
    blocks = np.arange(first // 4, (first + n + 3) // 4, dtype=np.uint64) & np.uint64(MASK)
    same = [np.full(len(blocks), x, dtype=np.uint64) for x in (purpose, layer, expert)]
    out = np.stack(philox([blocks] + same, (seed & MASK, seed >> 32)), 1).ravel().tolist()
    return out[first % 4:first % 4 + n]


def horner(x, constants):
    q = f32(float.fromhex(constants[-1]))
    for c in reversed(constants[:-1]):
        q = q * x + f32(float.fromhex(c))
    return q


LOG = ("-0x1p+1", "0x1.00006cp+0", "-0x1.5558f4p-1", "0x1.ff6978p-2", "-0x1.97b1a4p-2",
       "0x1.61212ep-2", "-0x1.4b5dcep-2", "0x1.9d03b0p-3")
SIN = ("-0x1.555546p-3", "0x1.11077ep-7", "-0x1.9956b6p-13")
COS = ("0x1p+0", "-0x1.ffffbap-2", "0x1.553faap-5", "-0x1.647822p-10")


def normals(stream, first, n):
    begin = first - first % 2
    w = np.array(words(stream, begin, n + n % 2 + 2), dtype=np.uint32)
    x0, x1 = w[0::2], w[1::2]

    v = ((x0 & np.uint32(0x7FFFFFFF)) | np.uint32(1)).view(np.int32).astype(f32)
    above = v.view(np.int32) - np.int32(0x3F3504F3 + (31 << 23))
    e = (above >> 23).astype(f32)
    m = ((above & np.int32(0x7FFFFF)) + np.int32(0x3F3504F3)).view(f32)
    t = m - f32(1)
    r = np.sqrt(e * f32(float.fromhex("-0x1.62e430p+0")) + t * horner(t, LOG))

    a = x1.view(np.int32).astype(f32) * f32(float.fromhex("0x1.921fb6p-32"))
    z = a * a
    s = a + (a * z) * horner(z, SIN)
    c = horner(z, COS)
    c = np.where(x1 & np.uint32(1), -c, c)
    swap = (x1 & np.uint32(2)) != 0
    out = np.empty(2 * len(x0), dtype=f32)
    out[0::2] = r * np.where(swap, s, c)
    out[1::2] = r * np.where(swap, c, s)
    assert out.dtype == f32
    return out[first - begin:first - begin + n]


def to_bf16(x):
    bits = np.asarray(x, dtype=f32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(
        np.uint16)


def from_bf16(h):
    return (h.astype(np.uint32) << np.uint32(16)).view(f32)


def rounded(x, dtype):
    """Bits of float32 values in the type."""
    if dtype == "bfloat16":
        return to_bf16(x)
    if dtype == "float16":
        return np.asarray(x, dtype=f32).astype(np.float16).view(np.uint16)
    return np.asarray(x, dtype=f32).view(np.uint32)


def scaled(stream, first, n, mean, std):
    return f32(mean) + f32(std) * normals(stream, first, n)


def keys(stream, n):
    w = words(stream, 0, 2 * n)
    return [(w[2 * i] | w[2 * i + 1] << 32, i) for i in range(n)]


def sample(stream, population, n):
    return sorted(i for _, i in sorted(keys(stream, population))[:n])


def permutation(stream, n):
    return [i for _, i in sorted(keys(stream, n))]


def fixed(value):
    """hi * 2^-24 + lo * 2^-76."""
    hi = math.floor(value * 2.0**24)
    lo = int((value * 2.0**24 - hi) * 2.0**52)
    return hi + (lo >> 52), lo & ((1 << 52) - 1)


def row_sums(row):
    """Eight interleaved lanes, added as ((0+4)+(2+6)) + ((1+5)+(3+7))."""
    s, q = [0.0] * 8, [0.0] * 8
    for i, x in enumerate(row):
        s[i % 8] += float(x)
        q[i % 8] += float(x) * float(x)
    add = lambda v: ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    return fixed(add(s)) + fixed(add(q))


def column_sums(matrix):
    total = [[0, 0, 0, 0] for _ in range(matrix.shape[1])]
    for r0 in range(0, matrix.shape[0], 64):
        for c, t in enumerate(total):
            s = q = 0.0
            for x in matrix[r0:r0 + 64, c]:
                s += float(x)
                q += float(x) * float(x)
            for i, v in enumerate(fixed(s) + fixed(q)):
                t[i] += v
    return [tuple(t) for t in total]


def moments(sums, neurons, per_neuron):
    """Exact integers to the end; the program's double arithmetic has to come out the same."""
    n = len(neurons) * per_neuron
    s = sum((sums[i][0] << 52) + sums[i][1] for i in neurons)
    q = sum((sums[i][2] << 52) + sums[i][3] for i in neurons)
    mean = s / (n << 76)
    spread = (q << 76) * n - s * s  # * 2^152
    var = spread / ((n * (n - 1)) << 152) if n > 1 else 0.0
    return mean, math.sqrt(max(var, 0.0))


def dense_weight(seed, layer, role, rows, cols, mean=0.001, dtype="bfloat16"):
    values = scaled((seed, SYNTH, layer, role), 0, rows * cols, mean, 0.02)
    if dtype == "bfloat16":
        values = from_bf16(to_bf16(values))
    return values.reshape(rows, cols)


def expert(case):
    """One expert, from the dense weights to the bits of its three matrices."""
    n, h = case["neurons"], case["hidden"]
    seed, layer, e = case["seed"], case["layer"], case["expert"]
    count = int(case["ratio"] * n)
    dense_of = permutation((seed, SHUFFLE, layer, e), n) if case["shuffle"] else list(range(n))
    out = []
    for m, name in enumerate(MATRICES):
        down = name == "down"
        dense = dense_weight(seed, layer, m, *((h, n) if down else (n, h)))
        purpose = SAMPLE_GATE + m if case["independent"] else SAMPLE
        chosen = sample((seed, purpose, layer, e), n, count)
        values = (dense.T if down else dense)[dense_of].copy()  # one row per expert neuron
        bits = rounded(values, case["dtype"])
        if case["method"] != "naive":
            sums = column_sums(dense) if down else [row_sums(r) for r in dense]
            mean, std = moments(sums, [dense_of[i] for i in chosen], h)
            for k, i in enumerate(chosen):
                if case["method"] == "drop":
                    v = scaled((seed, GATE + m, layer, e), k * h, h, mean, std)
                else:
                    v = values[i] + f32(0.02) * normals((seed, NOISE_GATE + m, layer, e), k * h, h)
                bits[i] = rounded(v, case["dtype"])
        out.append((name, chosen, bits.T if down else bits))
    return out


def router(kind, std, seed, layer, experts, hidden, dtype):
    w = np.array([words((seed, ROUTER, layer, e), 0, hidden) for e in range(experts)],
                 dtype=np.float64)
    if kind == "normal":
        return np.stack([rounded(scaled((seed, ROUTER, layer, e), 0, hidden, 0, std), dtype)
                         for e in range(experts)])
    total = sum(sum(words((seed, ROUTER, layer, e), 0, hidden)) for e in range(experts))
    centre = float(total) / float(experts * hidden) * 2.0**-32
    if kind == "uniform01":
        centre = 0.0
    scale = 0.06928203230275509 if kind == "uniform" else 1.0
    return rounded(((w * 2.0**-32 - centre) * scale).astype(f32), dtype)


# ---------------------------------------------------------------------------- the files

STREAMS = ((0, 4, 0, 0), (1234, 4, 0, 0), (1234, 5, 31, 7), (0xFFFFFFFFFFFFFFFF, 6, 125, 255),
           (0x0123456789ABCDEF, 7, MASK, MASK))


def hexes(values, digits=8):
    return " ".join(f"{int(v):0{digits}x}" for v in values)


def write_normals(out):
    out.write("# seed purpose layer expert first : float32 bits of the normals from element first\n")
    for stream in STREAMS:
        for first, n in ((0, 32), (5, 7), (4 * MASK, 4), (123456789, 16)):
            out.write(f"{stream[0]} {stream[1]} {stream[2]} {stream[3]} {first} : "
                      f"{hexes(normals(stream, first, n).view(np.uint32))}\n")
    out.write("# hash: of 2^20 elements, the sum of (2 i + 1) * bits[i] modulo 2^64\n")
    bits = normals(STREAMS[1], 0, 1 << 20).view(np.uint32).astype(np.uint64)
    odd = np.arange(1 << 20, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    stream = STREAMS[1]
    out.write(f"{stream[0]} {stream[1]} {stream[2]} {stream[3]} 0 hash {int((bits * odd).sum()):x}"
              "\n")


def write_samples(out):
    out.write("# sample seed purpose layer expert population n : indices\n"
              "# permutation seed purpose layer expert n n : indices\n")
    for stream in STREAMS:
        for population, n in ((1, 1), (7, 3), (64, 32), (1000, 20), (100, 0), (50, 50)):
            got = sample((stream[0], SAMPLE) + stream[2:], population, n)
            out.write(f"sample {stream[0]} {SAMPLE} {stream[2]} {stream[3]} {population} {n} : "
                      f"{' '.join(map(str, got))}\n")
        for n in (1, 2, 33, 100):
            got = permutation((stream[0], SHUFFLE) + stream[2:], n)
            out.write(f"permutation {stream[0]} {SHUFFLE} {stream[2]} {stream[3]} {n} {n} : "
                      f"{' '.join(map(str, got))}\n")


def write_sums(out):
    out.write("# rows|columns seed layer role n_rows n_cols mean dtype : sum_hi sum_lo square_hi "
              "square_lo of\n# each neuron. The matrix: normals of stream (seed, SYNTH, layer, "
              "role) with this mean and std 0.02,\n# rounded to dtype. moments: mean and std of the "
              "even neurons\n")
    for kind, rows, cols, mean, dtype in (
            ("rows", 5, 200, 0.001, "bfloat16"), ("columns", 150, 6, 0.001, "bfloat16"),
            ("rows", 3, 7, -0.03, "bfloat16"), ("columns", 64, 3, -0.03, "bfloat16"),
            ("rows", 12, 80, -0.01, "float32"), ("columns", 200, 5, 0.25, "float32")):
        m = dense_weight(77, 3, rows, rows, cols, mean, dtype)
        sums = [row_sums(r) for r in m] if kind == "rows" else column_sums(m)
        out.write(f"{kind} 77 3 {rows} {rows} {cols} {mean} {dtype} : "
                  f"{' '.join(str(v) for s in sums for v in s)}\n")
        mean, std = moments(sums, list(range(0, len(sums), 2)), cols if kind == "rows" else rows)
        out.write(f"moments : {mean.hex()} {std.hex()}\n")


def write_experts(out):
    out.write("# case method seed layer expert neurons hidden ratio shuffle independent dtype\n"
              "# gate|up|down : bits in the order of the matrix. The dense matrices: bfloat16, mean "
              "0.001, roles 0, 1, 2\n")
    base = dict(seed=1234, layer=2, expert=5, neurons=20, hidden=12, ratio=0.5, shuffle=0,
                independent=0, dtype="bfloat16", method="drop")
    for change in (dict(), dict(shuffle=1), dict(independent=1, dtype="float32"),
                   dict(ratio=0.3, dtype="float16", expert=0), dict(ratio=1.0, hidden=9),
                   dict(method="noise", shuffle=1), dict(method="naive", shuffle=1)):
        case = {**base, **change}
        out.write("case {method} {seed} {layer} {expert} {neurons} {hidden} {ratio} {shuffle} "
                  "{independent} {dtype}\n".format(**case))
        for name, _, bits in expert(case):
            out.write(f"{name} : {hexes(bits.ravel(), 2 * bits.itemsize)}\n")


def write_routers(out):
    out.write("# router std seed layer experts hidden dtype : bits\n")
    for kind in ("uniform", "uniform01", "uniform01-centred", "normal"):
        for dtype, hidden in (("float32", 10), ("bfloat16", 33)):
            bits = router(kind, 0.02, 1234, 17, 3, hidden, dtype)
            out.write(f"{kind} 0.02 1234 17 3 {hidden} {dtype} : "
                      f"{hexes(bits.ravel(), 2 * bits.itemsize)}\n")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "../../tests/data/golden")
    for name, write in (("normals", write_normals), ("samples", write_samples),
                        ("sums", write_sums), ("experts", write_experts),
                        ("routers", write_routers)):
        with open(os.path.join(folder, f"golden_{name}.txt"), "w") as out:
            out.write("# Contract version 1; written by tools/gen/golden.py.\n")
            write(out)


main()
