"""Frames of a video by number, whatever they are stored in."""
