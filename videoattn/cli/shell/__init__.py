"""Answers to a shell that completes what the user types."""
