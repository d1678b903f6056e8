"""Attention by relative position, summed with FFTs (LiSA)."""

from videoattn.operators.lisa.operator import LisaAttention

__all__ = ["LisaAttention"]
