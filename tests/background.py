"""Undoes what a shell does to what it starts in the background."""

import signal


def hear_signals() -> None:
    """Has the processes that this one starts notice interrupts and hangups again.

    A shell starts what runs in the background with interrupts ignored, `nohup` with hangups, and
    children inherit that; handlers are not inherited.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
