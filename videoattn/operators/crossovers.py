"""From which sizes on "auto" computes an operator in another way: one place for what was measured.

CPU values were measured with `benchmarks/operators.py` and its parts on one core of an AMD EPYC (Zen 4, AVX-512), torch
2.13, float32, 12 heads of 64 channels; run it on your machine with other values here to see what it would gain. Values
for "cuda" are **estimates** from counts of products and bytes for an H200: no GPU was at hand.
"""

# ---- fibonacci

# Without a compiler the pairs alone are faster on a CPU from this many keys on, and the masked product below.
PAIRS_FROM_KEYS = 96

# ---- lisa

# How long a multiply-accumulate takes in each form, next to one of the pairs; "auto" takes the form that is done first.
# "axes": matrix products as well, which write more than they multiply. "fft": transforms run at a tenth of the pace of
# matrix products on a CPU; on a GPU they are bound by memory, and the chain beats a Toeplitz product from about 3000
# tokens on.
LISA_TIME_OF_MAC: dict[str, dict[str, float]] = {
    "cpu": {"direct": 1.0, "axes": 1.0, "fft": 10.0},
    "cuda": {"direct": 1.0, "axes": 1.5, "fft": 10.0},
}
