"""Fine-tune image-text models without wrecking them."""
