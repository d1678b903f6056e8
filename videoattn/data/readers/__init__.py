"""Readers of videos: frames by number from files, pictures and tars."""
