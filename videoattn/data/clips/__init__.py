"""Clips of videos: sampling of frames, reading, and order of videos."""
