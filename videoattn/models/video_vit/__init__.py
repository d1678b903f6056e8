"""Plain video ViTs whose blocks attend jointly over all tubelets: VideoMAE, V-JEPA 2 and V-JEPA 2.1."""
