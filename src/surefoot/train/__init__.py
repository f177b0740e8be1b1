"""Training: one loop, one optimizer step, for every method."""

from surefoot.train.batches import batches, training_images
from surefoot.train.loop import Fitted, fit
from surefoot.train.parameters import select
from surefoot.train.preflight import preflight
from surefoot.train.settings import Step, Training, schedule, settings_of
from surefoot.train.state import State, pack, part, start_state, text_head

__all__ = [
    "Fitted",
    "State",
    "Step",
    "Training",
    "batches",
    "fit",
    "pack",
    "part",
    "preflight",
    "schedule",
    "select",
    "settings_of",
    "start_state",
    "text_head",
    "training_images",
]
