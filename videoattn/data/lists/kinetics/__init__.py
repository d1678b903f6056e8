"""Kinetics' own lists."""
