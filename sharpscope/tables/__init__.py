"""The tables of a run: columns (``schema``), files (``files``), formatted numbers (``formats``) and rows (``rows``)."""
