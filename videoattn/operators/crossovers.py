"""Sizes from which "auto" computes an operator in another way, as measured.

CPU values were measured with the steps of `benchmarks/operators.py`, each method by itself, on one core of an AMD EPYC
(Zen 4, AVX-512), torch 2.13, float32, 12 heads of 64 channels. `python benchmarks/operators.py --sites "joint 1568"`
with other values here shows what they would gain on your machine. Values for "cuda" are **estimates** from counts of
products and bytes for an H200: no GPU was at hand.
"""

# ---- fibonacci

# Without a compiler, gathering is faster on a CPU from this many keys on, and the masked product below.
GATHER_FROM_KEYS = 96

# ---- lisa

# How long a multiply-accumulate takes by each method, next to one of "direct"; "auto" chooses what should end first.
# "axes" needs no matrices of pairs: forward and backward it is faster from 8 x 7 x 7 tokens on, forward alone from
# 4 x 14 x 14 on; for eight frames of 21 x 21 "direct" is faster. Transforms are slow where axes are short: "fft" beats
# "direct" for 784 tokens in a row, but takes three to seven times as long as "axes" for one to four frames of 14 x 14.
LISA_TIME_OF_MAC: dict[str, dict[str, float]] = {
    "cpu": {"direct": 1.0, "axes": 0.65, "fft": 5.0},
    "cuda": {"direct": 1.0, "axes": 1.0, "fft": 15.0},
}
