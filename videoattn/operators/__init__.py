"""Attention operators by name."""

from videoattn.operators.base import AttentionOperator, AttentionSite
from videoattn.operators.dense import DenseAttention
from videoattn.operators.fibonacci import FibonacciAttention

OPERATORS: dict[str, type[AttentionOperator]] = {
    "dense": DenseAttention,
    "fibonacci": FibonacciAttention,
}

__all__ = ["OPERATORS", "AttentionOperator", "AttentionSite", "DenseAttention", "FibonacciAttention"]
