"""Sparse attention put into weights that were trained with dense attention."""
