"""Attention exchanged inside models of other libraries."""
