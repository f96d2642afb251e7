"""The tables of a run: their columns (``schema``), files (``files``) and rows that several rooms need (``rows``)."""
