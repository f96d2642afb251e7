"""The experiments of prompt learning's papers: tuned on some images, evaluated on others, in their own tables."""
