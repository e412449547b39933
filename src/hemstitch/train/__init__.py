"""Configuration, the loop, step strategies, checkpoints, run folder."""
