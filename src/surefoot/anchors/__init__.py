"""Anchors of ARF: captions, and retrieved image-text pairs."""
