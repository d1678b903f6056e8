"""Probes on a frozen encoder: a grid of them trained at once, evaluated, and the features that they share."""
