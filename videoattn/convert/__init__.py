"""Replacing attention inside models of other libraries."""
