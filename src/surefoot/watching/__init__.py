"""Watching a run: a log of JSON lines, boards of other tools, and what a folder says of how far it is."""

from surefoot.watching.board import BOARDS as BOARDS
from surefoot.watching.board import boards as boards
from surefoot.watching.board import require as require
from surefoot.watching.log import FILE as FILE
from surefoot.watching.log import Log as Log
from surefoot.watching.log import Together as Together
from surefoot.watching.status import LOCK as LOCK
from surefoot.watching.status import Status as Status
from surefoot.watching.status import status as status
