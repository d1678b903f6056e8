"""Clips of videos: which frames, from which videos, in which batch."""
