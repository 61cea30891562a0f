"""Training-Free GRPO (arXiv 2510.08191) as a DSPy optimizer."""
