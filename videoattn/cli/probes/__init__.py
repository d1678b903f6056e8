"""Parts of `videoattn train` for MODEL.FREEZE encoder: a grid of probes, its features and their cost."""
