"""One run on several processes, as torchrun starts them: the same global batch, each process encoding its share of it.

Every process sees all labels and texts of a batch, and the images of its own share. Features are gathered with their gradients, so that
each process computes the loss of the whole batch; DistributedDataParallel averages what the shares give. Without a process group all of
this is one process, which does everything.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from surefoot.errors import SettingError

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_alike: ContextVar[bool] = ContextVar("alike", default=False)


def start(device: torch.device) -> torch.device:
    """Join the process group that torchrun announces, if it started this process.

    Args:
        device: what was asked for; of several CUDA devices each process takes its own.

    Returns:
        The device of this process.

    Raises:
        SettingError: more processes than CUDA devices.
    """
    if not announced() or not dist.is_available():
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise SettingError(
                f"torchrun started more processes than there are CUDA devices ({torch.cuda.device_count()}). "
                f"Start it with --nproc-per-node {torch.cuda.device_count()}, or give --device cpu."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def end() -> None:
    """Leave the process group, if there is one."""
    if _together():
        dist.destroy_process_group()


def announced() -> bool:
    """Whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def num_processes() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if _together() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if _together() else 0


def is_first() -> bool:
    """Whether this process writes the files and speaks to the user."""
    return rank() == 0


def wait() -> None:
    """Until all processes are here."""
    if _together():
        dist.barrier()


def share(total: int, of: int | None = None) -> slice:
    """The part of `total` rows that process `of` (this one if None) takes: shares differ by one row at most, and keep the order.

    Fewer rows than processes are not shared: all of them take all.

    Examples:
        >>> share(10)
        slice(0, 10, None)
    """
    number, processes = rank() if of is None else of, num_processes()
    if total < processes:
        return slice(0, total)
    least, more = divmod(total, processes)
    begin = number * least + min(number, more)
    return slice(begin, begin + least + (number < more))


def gathered(features: Tensor, total: int) -> Tensor:
    """All `total` rows, of which this process has its `share` [n, D]; the gradient of a loss that all processes compute goes back to it.

    The gradient is multiplied by the number of processes, since DistributedDataParallel divides by it: parameters whose gradients all
    processes compute alike (a head, the scale, a penalty on weights) keep theirs, and those of the towers are summed over the shares.
    """
    if num_processes() == 1 or total < num_processes():
        return features
    return _Gather.apply(features, total)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, total: int) -> Tensor:  # noqa: ANN401
        ctx.total = total
        return _all_rows(features, total)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return num_processes() * gradient[share(ctx.total)], None


def _all_rows(rows: Tensor, total: int) -> Tensor:
    """[total, ...] of the shares [n, ...] of all processes."""
    sizes = [share(total, of) for of in range(num_processes())]
    longest = max(part.stop - part.start for part in sizes)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded)
    return torch.cat([one[: part.stop - part.start] for one, part in zip(found, sizes, strict=True)])


@contextlib.contextmanager
def calls_alike() -> Iterator[None]:
    """While this is open every process calls its towers as often as the others, with as many rows.

    Processes that hold the weights together give them to each other at every call; where one makes a call more, it would wait forever.
    """
    before = _alike.set(True)
    try:
        yield
    finally:
        _alike.reset(before)


def _lacking(total: int) -> int:
    """How many rows this process's share has less than the longest: 0 or 1; 0 where that makes no difference."""
    if not _alike.get() or total < num_processes():
        return 0
    return -(-total // num_processes()) - len(range(total)[share(total)])


def evened(encode: Callable[[Tensor], Tensor], rows: Tensor, total: int) -> Tensor:
    """`encode(rows)` of this process's share of `total`; within `calls_alike` a shorter one is filled up with a row that does not count."""
    lacking = _lacking(total)
    return encode(torch.cat([rows, rows[-1:]]))[:-1] if lacking else encode(rows)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that the processes hold together, with its gradient; others as they are. All processes must ask at once."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full is not None else tensor


def like(parameter: Tensor, values: Tensor) -> Tensor:
    """This process's part of `values`, the same in all processes, where they hold `parameter` together; elsewhere `values`."""
    if not hasattr(parameter, "full_tensor"):
        return values
    from torch.distributed.tensor import DTensor, distribute_tensor  # here, because it takes long to import

    assert isinstance(parameter, DTensor)
    return distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements)


def all_rows(encode: Callable[[slice], Tensor], total: int) -> Tensor:
    """`encode` of all `total` rows [total, ...], without gradient; each process computes its share."""
    mine, lacking = share(total), _lacking(total)
    own = encode(slice(mine.start - lacking, mine.stop))[lacking:]
    return own if num_processes() == 1 or total < num_processes() else _all_rows(own.contiguous(), total)


def agreed(value: _Value) -> _Value:
    """What the first process has, such as a time that it measured, so that all decide alike."""
    if num_processes() == 1:
        return value
    given = [value]
    dist.broadcast_object_list(given)
    return given[0]


def any_of(number: int | None, device: torch.device) -> int | None:
    """The largest number that a process has, in all of them at once, so that all do alike; None where none has one.

    Args:
        number: more than 0, or None.
        device: of this process.
    """
    if num_processes() == 1:
        return number
    held = torch.tensor(number or 0, device=device)
    dist.all_reduce(held, dist.ReduceOp.MAX)
    return int(held) or None


def lost(error: RuntimeError) -> str:
    """What an error says of another process of the run that cannot be reached; "" if it is about something else.

    Gloo's errors are plain ones that begin with a file of its own; others have a class.

    Examples:
        >>> lost(RuntimeError("[/src/gloo/tcp/pair.cc:1] Connection closed by peer [::1]:2. This is typically caused by a crash."))
        'Connection closed by peer [::1]:2'
    """
    if not dist.is_available() or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return ""
    return re.sub(r"^\[[^]]*\] *", "", str(error)).split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__


def merged(found: Mapping[_Key, _Value]) -> dict[_Key, _Value]:
    """What all processes found together, the first ones first."""
    if num_processes() == 1:
        return dict(found)
    every: list[dict[_Key, _Value]] = [{} for _ in range(num_processes())]
    dist.all_gather_object(every, dict(found))
    return {key: value for one in every for key, value in one.items()}
