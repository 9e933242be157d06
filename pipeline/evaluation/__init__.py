"""What trained models are good for: zero-shot, frozen features, retrieval."""
