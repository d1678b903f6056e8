"""Replacing attention inside models of other libraries and of this package."""
