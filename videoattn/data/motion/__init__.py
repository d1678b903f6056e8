"""Motion, the built-in data set: small clips whose class is a motion that no single frame shows."""
