"""Advice on alpha, one module for each situation: what is known of the OOD data decides how alpha can be chosen."""
