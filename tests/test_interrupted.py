"""What goes wrong while a run is under way: a file that vanishes, a thread that dies, a disk that fills up, a signal at the last moment.

Each is a sentence that names the file and says how to go on, and the run that goes on ends at the bits of an undisturbed one.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fresh, typed
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from surefoot import records, stopping
from surefoot.data import Dataset, open_dataset
from surefoot.data.images import Budget, Images, read_image
from surefoot.errors import DataError, MissingDataError, ResourceError, SettingError, TrainingError
from surefoot.folders import put_text, whole_file
from surefoot.methods import get
from surefoot.model import ImageTextModel
from surefoot.report import write_page
from surefoot.train import Fitted, Step, Training, checkpoint, fit, loop, prefetch
from surefoot.watching import Log, status
from surefoot.watching.board import _WandB, require
from surefoot.watching.log import events

TRAINING = Training(epochs=3, batch_size=8, learning_rate=1e-2)  # 3 steps an epoch, each image in every epoch


def run(model: ImageTextModel, data: Dataset, **how: Any) -> Fitted:  # noqa: ANN401
    return fit(get("tp_ft"), fresh(model), data, TRAINING, budget=Budget(0), **how)


def assert_same(one: Fitted, other: Fitted) -> None:
    assert one.state.keys() == other.state.keys() and all(torch.equal(one.state[name], other.state[name]) for name in one.state)
    assert (one.history, one.num_steps) == (other.history, other.num_steps)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_file_that_vanishes_is_named_and_the_run_goes_on_once_it_is_back(
    split: str, copy_of: Callable[[], Path], loaded_model: ImageTextModel, tmp_path: Path
) -> None:
    data, steps = open_dataset(copy_of()), list[int]()
    expected, gone = run(loaded_model, data), data.split(split).paths[-1]

    def vanish(step: Step) -> None:
        steps.append(step.number)
        if step.number == 2:
            gone.rename(tmp_path / "elsewhere.png")

    resume = {"resume": tmp_path / "run.resume", "checkpoint_seconds": 0}
    with pytest.raises(MissingDataError) as told:
        run(loaded_model, data, on_step=vanish, **resume)
    assert str(told.value) == f"{gone} is not there any more. Put it back, and run the same command again; what is finished is kept."
    last = steps[-1]
    assert last >= 2 and (tmp_path / "run.resume").is_file()
    (tmp_path / "elsewhere.png").rename(gone)
    steps.clear()
    assert_same(run(loaded_model, data, on_step=lambda step: steps.append(step.number), **resume), expected)
    assert steps[0] in (last, last + 1), "the run went on where it was"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EIO, "Input/output error"), (errno.EACCES, "Permission denied"), (errno.ESTALE, "Stale")]
)
def test_a_disk_that_does_not_give_a_file_is_no_damaged_image(
    number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "a.png"))

    (tmp_path / "a.png").write_bytes(b"is there")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match=rf"a\.png cannot be read \({said}.*run the same command again"):
        read_image(tmp_path / "a.png")


def test_a_reader_without_memory_names_the_image(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImageFile, "load", full)  # where Pillow reads the parts of a file, each as long as it says it is
    path = next((tiny_root / "train").rglob("*.png"))
    with pytest.raises(ResourceError, match=rf"{path} cannot be read: no memory is left") as caught:
        Images([path], lambda image: torch.zeros(3, 2, 2)).batch([0])
    assert not isinstance(caught.value, DataError), "what has no memory is not skipped as damaged"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_without_a_word_ends_the_run_which_goes_on(
    loaded_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, resume = run(loaded_model, tiny_data), {"resume": tmp_path / "run.resume", "checkpoint_seconds": 0}

    class Dying(queue.Queue[Any]):
        """No memory is left for the fourth item, nor for the error that says so."""

        puts = 0

        def put(self, item: object, block: bool = True, timeout: float | None = None) -> None:
            self.puts += 1
            if self.puts >= 4:
                raise MemoryError
            super().put(item, block, timeout)

    monkeypatch.setattr(prefetch.queue, "Queue", Dying)
    with pytest.raises(TrainingError, match=r"thread that reads images ended without a word.*run the same command again"):
        run(loaded_model, tiny_data, **resume)
    monkeypatch.undo()
    assert_same(run(loaded_model, tiny_data, **resume), expected)


def test_a_thread_that_cannot_begin_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(TrainingError, match=r"can't start new thread.*run the same command again"):
        next(prefetch.prefetched(iter([1])))


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on the disk has no room for files whose name ends so: they can be made, and take a few bytes."""

    def fill(ending: str) -> None:
        real = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:  # noqa: ANN401
            made = real(file, mode, *rest, **more)
            if str(file).endswith(ending) and set(mode) & set("wax+"):
                write = made.write

                def short(content: Any) -> int:  # noqa: ANN401
                    write(content[:5])
                    made.flush()
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                return _Short(made, short)
            return made

        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(builtins, "open", opened)

    return fill


class _Short:
    """A file with another `write`."""

    def __init__(self, file: Any, write: Callable[[Any], int]) -> None:  # noqa: ANN401
        self.file, self.write = file, write

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self.file, name)

    def __enter__(self) -> _Short:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


ONE = records.Evaluation(
    method="flyp", seed=3, alpha=0.5, dataset="d", accuracy={"test": 0.9}, num_images={}, answers="", settings={}, settings_hash="h"
)
ANSWERS = {"test": records.Answers(np.zeros(2, np.int32), np.zeros(2, np.int32), np.zeros(2, np.float32))}
TOLD = r"cannot be written \(No space left on device\)\. Make room or give another folder by --out, and run the same command again"


def test_a_record_that_does_not_fit_names_the_file_and_spoils_no_other(
    tmp_path: Path, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    records.append(tmp_path, ONE)
    full("records.jsonl")
    with pytest.raises(DataError, match=rf"records\.jsonl {TOLD}"):
        records.append(tmp_path, replace(ONE, seed=4))
    monkeypatch.undo()
    assert (tmp_path / "records.jsonl").read_bytes()[-1:] != b"\n", "it was cut off"
    assert [r.seed for r in records.read(tmp_path)] == [3]  # type: ignore[union-attr]
    records.append(tmp_path, replace(ONE, seed=5))
    assert [r.seed for r in records.read(tmp_path)] == [3, 5]  # type: ignore[union-attr]


def test_answers_that_do_not_fit_name_the_file_and_leave_the_ones_before(tmp_path: Path, full: Callable[[str], None]) -> None:
    path = records.save_answers(tmp_path, "a", ANSWERS)
    before = (tmp_path / path).read_bytes()
    full("a.npz.part")
    with pytest.raises(DataError, match=rf"a\.npz {TOLD}"):
        records.save_answers(tmp_path, "a", ANSWERS)
    assert [p.name for p in (tmp_path / "answers").iterdir()] == ["a.npz"] and (tmp_path / path).read_bytes() == before


def test_a_report_that_does_not_fit_leaves_the_one_before(tmp_path: Path, full: Callable[[str], None]) -> None:
    records.append(tmp_path, ONE)
    page = write_page(tmp_path, tmp_path / "report", command="x")
    before = page.read_bytes()
    full("index.html.part")
    with pytest.raises(DataError, match=rf"index\.html {TOLD}"):
        write_page(tmp_path, tmp_path / "report", command="x")
    assert page.read_bytes() == before and [p.name for p in page.parent.iterdir()] == ["index.html"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_file_appears_whole_or_not_at_all(error: BaseException, tmp_path: Path) -> None:
    put_text(tmp_path / "deep" / "a", "caf\udce9")
    assert (tmp_path / "deep" / "a").read_bytes() == b"caf\xe9"
    with pytest.raises((DataError, KeyboardInterrupt)), whole_file(tmp_path / "deep" / "a") as partial:
        partial.write_text("half")
        raise error
    assert [(p.name, p.read_bytes()) for p in (tmp_path / "deep").iterdir()] == [("a", b"caf\xe9")]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before_which_the_run_goes_on_from(
    loaded_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, save, resume = (
        run(loaded_model, tiny_data),
        checkpoint.save_file,
        {"resume": tmp_path / "run.resume", "checkpoint_seconds": 0},
    )
    written = list[Path]()

    def fills_up(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", fills_up)
    with pytest.raises(TrainingError, match=r"run\.resume could not be written .*No space left.*Make room"):
        run(loaded_model, tiny_data, **resume)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["run.resume"]
    assert_same(run(loaded_model, tiny_data, on_step=(steps := list[Step]()).append, **resume), expected)
    assert steps[0].number == 3


def test_a_log_that_does_not_fit_ends_no_run_and_hides_no_error(
    tmp_path: Path, full: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(tmp_path)
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError, match="the checkpoint"), log.session("surefoot fit"):
        full("log.jsonl")
        log.run("flyp", 0, 1, 1, training=True, images=0)
        log.step(Step(1, 4, 0.5, 1.0))
        monkeypatch.undo()
        log.step(Step(4, 4, 0.4, 2.0))
        full("log.jsonl")
        raise TrainingError("the checkpoint could not be written")
    monkeypatch.undo()
    assert [e["event"] for e in events(tmp_path)] == ["begin", "step"], "one line that was cut off spoils no other"
    (message,) = caplog.messages
    assert "log.jsonl cannot be written (No space left on device). The run goes on" in message
    full("log.jsonl")
    with pytest.raises(DataError, match=rf"log\.jsonl {TOLD}"), Log(tmp_path).session("surefoot fit"):
        pytest.fail("a command that cannot begin its log does not begin")
    monkeypatch.undo()
    assert [e["event"] for e in events(tmp_path)] == ["begin", "step"], "what stood there still does"


@pytest.fixture
def heard() -> Iterator[None]:
    """Signals are heard, even where whoever started the tests told the process to ignore them."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in stopping.SIGNALS}
    with stopping.listening():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heard")
def test_a_signal_that_nobody_asks_for_any_more_is_not_lost() -> None:
    with pytest.raises(stopping.Stopped, match="SIGTERM"), stopping.deferred():
        with stopping.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        reached = True
    assert reached, "it waits for the outermost"
    with stopping.deferred() as asked:
        assert asked() is None, "and is raised once"
    with pytest.raises(ZeroDivisionError), stopping.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ZeroDivisionError
    with stopping.deferred() as asked:
        assert asked() is None


@pytest.mark.usefixtures("heard")
def test_a_signal_after_the_last_step_saves_it(
    loaded_model: ImageTextModel, tiny_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, between = run(loaded_model, tiny_data), loop._Run.between_steps

    def late(self: Any, *given: Any) -> None:  # noqa: ANN401
        between(self, *given)
        if self.progress.step == 9 and given[-1] is None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop._Run, "between_steps", late)
    with pytest.raises(stopping.Stopped, match="SIGTERM"):
        run(loaded_model, tiny_data, resume=tmp_path / "run.resume")
    monkeypatch.undo()
    resumed = run(loaded_model, tiny_data, resume=tmp_path / "run.resume", on_step=(steps := list[Step]()).append)
    assert_same(resumed, expected)
    assert not steps, "nothing was left to do"


def test_a_board_that_cannot_begin_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class RefusedError(Exception):
        pass

    def init(**_: object) -> None:
        raise RefusedError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Error=RefusedError))
    with pytest.raises(SettingError, match=r"--watch wandb: .*api_key not configured.*wandb login.*WANDB_MODE=offline"):
        _WandB(tmp_path, "flyp", 0)


def test_a_folder_called_wandb_is_not_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "boardless").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules["surefoot.watching.board"].PACKAGES, "wandb", "boardless")
    with pytest.raises(SettingError, match="pip install boardless"):
        require(["wandb"])


def test_fit_is_at_work_until_its_model_is_written(
    tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from surefoot.cli import fit as command

    seen, out = list[str](), tmp_path / "run"

    def stop(*_: object, **__: object) -> None:
        seen.append(status(out, [], []).state)
        raise KeyboardInterrupt

    module = sys.modules["surefoot.cli.fit"]
    assert module.fit is command
    monkeypatch.setattr(module, "save_bundle", stop)
    given = [tiny_root, "--model", f"local-dir:{tiny_folder}", "--method", "tp_ft", "--set", "steps=2", "--precision", "fp32", "--out", out]
    code, said = typed(monkeypatch, capsys, "fit", *given)
    assert (code, seen) == (130, ["running"]), said
    assert [e["event"] for e in events(out)][-1] == "stopped"
    code, said = typed(monkeypatch, capsys, "status", out)
    assert "stopped at" in said and "Go on: surefoot fit" in said
    assert json.loads((out / "job.json").read_text())["form"] == 2


@pytest.mark.parametrize("command", ["evaluate", "soup"])
def test_what_another_command_is_writing_is_left_alone(
    command: str, tiny_root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, out = tmp_path / "run", tmp_path / "busy"
    given = ["--model", f"local-dir:{tiny_folder}", "--method", "tp_ft", "--set", "steps=2", "--precision", "fp32", "--out", trained]
    assert typed(monkeypatch, capsys, "fit", tiny_root, *given)[0] == 0
    out.mkdir()
    (out / ".run.lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname(), "doing": "compare"}))
    code, said = typed(monkeypatch, capsys, command, trained, *([tiny_root] if command == "evaluate" else []), "--out", out)
    assert code == 2 and f"is being written by another 'surefoot compare': process {os.getppid()}" in said
    assert [path.name for path in out.iterdir()] == [".run.lock"]
