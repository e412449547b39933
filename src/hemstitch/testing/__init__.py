"""Public helpers for tests: the optimizer contract suite, small problems, oracles."""
