#!/usr/bin/env python3
"""Print the polynomials of src/rng/normal_body.h: minimax fits by linear programming, rounded to
float32 one constant after the other (each fit makes up for what the last rounding lost).

usage: tools/gen/minimax.py       (needs numpy, scipy)
"""
import numpy as np
from scipy.optimize import linprog


def fit(x, target, weight, degree, fixed):
    """Minimise max |weight * (sum c_p x^p - target)|, some c_p being given."""
    fixed = dict(fixed)
    free = [p for p in range(degree + 1) if p not in fixed]
    while free:
        known = sum(c * x**p for p, c in fixed.items())
        columns = np.stack([weight * x**p for p in free], 1)
        scale = np.abs(columns).max(0)
        columns, wanted = columns / scale, weight * (target - known)
        unit = np.abs(wanted).max()
        ones = np.ones((len(x), 1))
        found = linprog([0] * len(free) + [1],
                        A_ub=np.block([[columns, -ones], [-columns, -ones]]),
                        b_ub=np.concatenate([wanted, -wanted]) / unit,
                        bounds=[(None, None)] * len(free) + [(0, None)], method="highs",
                        options={"primal_feasibility_tolerance": 1e-10,
                                 "dual_feasibility_tolerance": 1e-10})
        fixed[free[0]] = float(np.float32(found.x[0] * unit / scale[0]))
        free = free[1:]
    error = np.abs(weight * (sum(c * x**p for p, c in fixed.items()) - target)).max()
    return [fixed[p] for p in range(degree + 1)], error


def chebyshev(low, high, n=801):
    return (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (np.arange(n) + 0.5) / n)


def show(name, constants, error):
    print(f"{name}: error {error:.2g}")
    for i, c in enumerate(constants):
        print(f"  {name}_{i} {c.hex()}")


def main():
    t = chebyshev(np.sqrt(0.5) - 1, np.sqrt(2) - 1)
    log = -2 * np.log1p(t)
    show("LOG", *fit(t, log / t, np.abs(t / log), 7, {0: -2.0}))

    a = chebyshev(1e-3, np.pi / 4 * 1.0000001)
    show("SIN", *fit(a * a, (np.sin(a) / a - 1) / (a * a), a * a, 2, {}))

    a = chebyshev(1e-4, np.pi / 4 * 1.0000001)
    constants, error = fit(a * a, np.cos(a), np.ones_like(a), 3, {0: 1.0})
    show("COS", constants[1:], error)


main()
