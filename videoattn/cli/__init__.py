"""The programs: parse, build, call."""
