"""What tells one set of weights from another."""

from __future__ import annotations

import hashlib
import json

from surefoot.model import ImageTextModel


def weights_hash(model: ImageTextModel) -> str:
    """Sixteen hexadecimal digits over a model's configuration (architecture and preprocessing) and every weight."""
    total = hashlib.sha256(json.dumps(model.config(), sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.weights().items()):
        total.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]
