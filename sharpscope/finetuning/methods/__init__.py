"""The fine-tuning methods, one a file; ``finetuning.registry`` lists them."""
