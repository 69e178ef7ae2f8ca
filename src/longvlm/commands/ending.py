"""How a command ends: its exit status, the last line it says, Ctrl-C, and SIGTERM."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import typer

from longvlm.commands import console
from longvlm.errors import LongVLMError, is_out_of_memory, one_line
from longvlm.index.video_folders import shorten

LEFT_SOMETHING_OUT, MISTAKE, INTERRUPTED, TERMINATED, HUNG_UP = 1, 2, 130, 143, 129
DEFECT = 70  # EX_SOFTWARE of sysexits.h, which Python knows on Unix alone

_LAST_WORD = {INTERRUPTED: "Interrupted.", TERMINATED: "Terminated.", HUNG_UP: "Hung up."}
# Who presses Ctrl-C waits for the prompt; what sends SIGTERM (systemd, docker, a batch system) has ten seconds or more.
_GRACE_SECONDS = {INTERRUPTED: 0.5, TERMINATED: 5.0, HUNG_UP: 5.0}
# Signals that clean up and end, with their statuses; Windows has no SIGHUP.
_ENDS: dict[int, int] = {signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):
    _ENDS[signal.SIGHUP] = HUNG_UP

# What the system refuses whatever we do.
_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG}
# typer exports only this child of the class that all its complaints about the command line share
_USAGE_ERROR: Any = typer.BadParameter.__base__

_IN_LESS_MEMORY = (
    "Do less at a time (fewer frames, smaller batches), or choose a smaller --dtype or another --device, where the "
    "command has these; `longvlm plan` tells what a question needs."
)

_ending = threading.Lock()  # two threads may want to end the process, but one line is enough


class _Terminated(SystemExit):
    """SIGTERM or SIGHUP has come: what is open is closed, and what is half-written deleted, on the way up."""


def run_to_end(app: typer.Typer, name: str) -> int:
    """Run the command that `sys.argv` names, and return the exit status; every way it can end has its own.

    0 done; 1 done but for some videos or rows, which were named; 2 a mistake in the input, told in one line;
    129 SIGHUP; 130 Ctrl-C; 143 SIGTERM; 70 a defect of ours, which keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may have characters that the terminal's encoding lacks
    with _ending_soon_after_signals():
        status = _run(app, name)
        if status in _LAST_WORD:
            _end_at_once(status)
    return status


def _run(app: typer.Typer, name: str) -> int:
    try:
        status: int = app(prog_name=name, standalone_mode=False) or 0
        if sys.stdout is not None:  # as where it was closed
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
    except _Terminated as end:
        return int(end.code or TERMINATED)
    except BrokenPipeError:  # whoever read stdout has gone
        _drop_what_is_buffered()
        return LEFT_SOMETHING_OUT
    except Exception as failure:  # noqa: BLE001 - nothing is swallowed: its traceback is printed
        if isinstance(failure, OSError) and failure.errno in _REFUSALS:
            return _tell_refusal(failure)
        if is_out_of_memory(failure):
            console.error(f"The memory does not hold this ({one_line(failure)}). {_IN_LESS_MEMORY}")
            return MISTAKE
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
def _ending_soon_after_signals() -> Iterator[None]:
    """Within it, Ctrl-C, SIGTERM and SIGHUP end the process soon, even while a library's C code keeps the main thread.

    KeyboardInterrupt, or `_Terminated`, comes first and cleans up. A thread that the signal itself wakes gives that
    `_GRACE_SECONDS`, since opening an address that doesn't answer can block for long.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's own
        yield
        return
    woken, waker = socket.socketpair()  # Windows lets signals write to sockets alone
    waker.setblocking(False)
    left = threading.Event()
    # Whoever handles or ignores one already has a reason, such as nohup.
    ours = {number: status for number, status in _ENDS.items() if signal.getsignal(number) == signal.SIG_DFL}
    statuses: dict[int, int] = {signal.SIGINT: INTERRUPTED, **ours}

    def watch() -> None:
        while number := woken.recv(1):
            status = statuses.get(number[0])
            if status is not None and not left.wait(_GRACE_SECONDS[status]):
                _end_at_once(status)

    watching = threading.Thread(target=watch, daemon=True, name="signal-watch")
    watching.start()
    previous = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in ours:
        signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(previous)
        left.set()
        waker.close()
        watching.join()
        woken.close()


def _terminate(number: int, _: object) -> NoReturn:
    for one in _ENDS:  # a second one must not break off the cleaning up
        if signal.getsignal(one) is _terminate:
            signal.signal(one, signal.SIG_IGN)
    raise _Terminated(_ENDS[number])


def _leave_signals_to_the_parent() -> None:
    """In a forked child, which must neither clean up what is its parent's when terminated, nor end its parent."""
    for number in _ENDS:
        if signal.getsignal(number) is _terminate:
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_signals_to_the_parent)


def _end_at_once(status: int) -> NoReturn:
    """Say why in one line and end, not waiting for what is still running."""
    with _ending:
        with suppress(OSError):  # a terminal that hung up
            shown_again = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
            print(shown_again + _LAST_WORD[status], file=sys.stderr, flush=True)
        os._exit(status)
