"""sharpscope: layer-wise sharpness along the path between a zero-shot CLIP and its fine-tuned version."""

__version__ = "0.1.0"
