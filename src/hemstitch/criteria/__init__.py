"""Training criteria: cross-entropy, lattice-free MMI, lattice MMI and its kin."""
