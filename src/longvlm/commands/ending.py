"""How a command ends: its exit status, the last line it says, and Ctrl-C."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer

from longvlm.commands import console
from longvlm.errors import LongVLMError
from longvlm.index.video_folders import shorten

LEFT_SOMETHING_OUT, MISTAKE, INTERRUPTED = 1, 2, 130
DEFECT = 70  # EX_SOFTWARE of sysexits.h, which Python knows on Unix alone
INTERRUPT_GRACE_SECONDS = 0.5

# What the system refuses whatever we do.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}
# typer exports only this child of the class that all its complaints about the command line share
_USAGE_ERROR: Any = typer.BadParameter.__base__

_ending = threading.Lock()  # two threads may want to end the process, but one line is enough


def run_to_end(app: typer.Typer, name: str) -> int:
    """Run the command that `sys.argv` names, and return the exit status; every way it can end has its own.

    0 done; 1 done but for some videos or rows, which were named; 2 a mistake in the input, told in one line;
    130 Ctrl-C; 70 a defect of ours, which keeps its traceback.
    """
    with _ending_soon_after_interrupt():
        status = _run(app, name)
        if status == INTERRUPTED:
            _end_interrupted()
    return status


def _run(app: typer.Typer, name: str) -> int:
    try:
        status: int = app(prog_name=name, standalone_mode=False) or 0
        sys.stdout.flush()
        return status
    except LongVLMError as mistake:
        console.error(str(mistake))
        return MISTAKE
    except _USAGE_ERROR as mistake:
        command = mistake.ctx.command_path if mistake.ctx else name
        console.error(f"{mistake.format_message().rstrip('.')}. See `{command} --help`.")
        return MISTAKE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # whoever read stdout has gone
        _drop_what_is_buffered()
        return LEFT_SOMETHING_OUT
    except Exception as failure:  # noqa: BLE001 - nothing is swallowed: its traceback is printed
        if isinstance(failure, OSError) and failure.errno in _REFUSALS:
            return _tell_refusal(failure)
        traceback.print_exc()
        return DEFECT


def _tell_refusal(refusal: OSError) -> int:
    if refusal.filename is None:
        _drop_what_is_buffered()
    name = shorten(str(refusal.filename or "the output"))
    console.error(f"Can't write {name} ({refusal.strerror}); choose another place.")
    return MISTAKE


def _drop_what_is_buffered() -> None:
    """What stdout did not take must not fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _ending_soon_after_interrupt() -> Iterator[None]:
    """Within it, Ctrl-C ends the process in half a second, even while a library's C code keeps the main thread.

    The usual KeyboardInterrupt comes first and cleans up. A thread that the signal itself wakes gives that
    `INTERRUPT_GRACE_SECONDS`, since opening an address that doesn't answer can block for long.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's own
        yield
        return
    woken, waker = socket.socketpair()  # Windows lets signals write to sockets alone
    waker.setblocking(False)
    left = threading.Event()

    def watch() -> None:
        while (number := woken.recv(1)) not in (b"", bytes([signal.SIGINT])):
            pass
        if number and not left.wait(INTERRUPT_GRACE_SECONDS):
            _end_interrupted()

    watching = threading.Thread(target=watch, daemon=True, name="interrupt-watch")
    watching.start()
    previous = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        left.set()
        waker.close()
        watching.join()
        woken.close()


def _end_interrupted() -> NoReturn:
    """Say so in one line and end with the status of Ctrl-C, not waiting for what is still running."""
    with _ending:
        print("Interrupted.", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)
