"""The embedded world: shapes drawn in styles, its tokenizer, and the checkpoints that come with it."""
