"""From which sizes on "auto" computes an operator in another way: one place for what was measured.

CPU values were measured with `benchmarks/operators.py` and its parts on one core of an AMD EPYC (Zen 4, AVX-512), torch
2.13, float32, 12 heads of 64 channels; run it on your machine with other values here to see what it would gain. Values
for "cuda" are **estimates** from counts of products and bytes for an H200: no GPU was at hand.
"""

# ---- fibonacci

# Without a compiler the pairs alone are faster on a CPU from this many keys on, and the masked product below.
PAIRS_FROM_KEYS = 96

# ---- lisa

# How long a multiply-accumulate takes by each method, next to one of "direct"; "auto" takes what should be done first.
# Products along axes are larger and need no matrices of pairs: "axes" is faster from about 400 keys on (14 x 14 tokens
# in 2 to 4 frames). Transforms run at a tenth of the pace of products: "fft" is faster from about 1000 tokens in a row.
LISA_TIME_OF_MAC: dict[str, dict[str, float]] = {
    "cpu": {"direct": 1.0, "axes": 0.65, "fft": 7.0},
    "cuda": {"direct": 1.0, "axes": 1.0, "fft": 15.0},
}
