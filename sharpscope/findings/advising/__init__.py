"""Advice on alpha, one module a situation: what is known of the OOD data decides how an alpha can be chosen."""
