"""A classifier in the formats of others, each a folder with a model card: open_clip, transformers, ONNX; and its way to a hub."""

from surefoot.export.push import push
from surefoot.export.targets import TARGETS, export

__all__ = ["TARGETS", "export", "push"]
