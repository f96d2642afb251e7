"""The fine-tuning methods, one per file; ``finetuning.registry`` lists them."""
