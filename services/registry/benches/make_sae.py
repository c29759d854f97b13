"""A synthetic Gemma Scope archive of the real size: 2304 x 65,536 float32, about 1.2 GB.

    python make_sae.py OUT.npz [d_in] [d_sae]

Needs numpy. Written array by array, as numpy.savez does it (stored, not compressed).
"""

import sys

import numpy as np


def main():
    out = sys.argv[1]
    d_in = int(sys.argv[2]) if len(sys.argv) > 2 else 2304
    d_sae = int(sys.argv[3]) if len(sys.argv) > 3 else 65536
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    np.savez(
        out,
        W_enc=normal(d_in, d_sae),
        W_dec=normal(d_sae, d_in),
        b_enc=normal(d_sae),
        b_dec=normal(d_in),
        threshold=np.abs(normal(d_sae)),
    )


main()
