"""Figures and the report, drawn from the tables of a run. No torch."""
