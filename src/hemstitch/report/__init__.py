"""Curves, tables, the HTML report of a run and of a comparison."""
