"""Official lists of Kinetics."""
