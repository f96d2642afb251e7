"""Figures of the papers behind sharpscope, remade from a run's tables; ``figures/paper_*.py`` write them. No torch."""
