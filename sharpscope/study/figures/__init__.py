"""Every figure from the tables of run directories: ``sharpscope figures`` and the scripts in ``figures/``. No torch."""
