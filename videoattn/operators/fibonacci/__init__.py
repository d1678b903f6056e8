"""Fibonacci-dilated attention (Fibottention)."""

from videoattn.operators.fibonacci.operator import FibonacciAttention

__all__ = ["FibonacciAttention"]
