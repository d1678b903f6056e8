"""Attention operators by name."""

from videoattn.operators.base import AttentionOperator, AttentionSite, HeadShare
from videoattn.operators.dense import DenseAttention
from videoattn.operators.dense_heads import DenseHeadsAttention, keep_heads_dense
from videoattn.operators.fibonacci.operator import FibonacciAttention
from videoattn.operators.focused_linear import FocusedLinearAttention
from videoattn.operators.lisa.operator import LisaAttention

OPERATORS: dict[str, type[AttentionOperator]] = {
    "dense": DenseAttention,
    "fibonacci": FibonacciAttention,
    "lisa": LisaAttention,
    "focused_linear": FocusedLinearAttention,
}

__all__ = [
    "OPERATORS",
    "AttentionOperator",
    "AttentionSite",
    "DenseAttention",
    "DenseHeadsAttention",
    "FibonacciAttention",
    "FocusedLinearAttention",
    "HeadShare",
    "LisaAttention",
    "keep_heads_dense",
]
