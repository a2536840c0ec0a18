"""What a saver is asked for, heard by one thread and looked at by another."""

from __future__ import annotations

import threading
import time

from holdfast.saver.orders import Orders


def test_what_has_happened_before_a_wait_is_not_slept_over():
    orders = Orders()
    orders.notify()
    began = time.monotonic()
    orders.wait(600)
    assert time.monotonic() - began < 600


def test_a_pause_is_not_cut_short_by_every_word():
    """The trainer that waits says so five times a second; a full disk is not looked at that often."""
    orders = Orders()
    stop = threading.Event()

    def chatter():
        while not stop.wait(0.001):
            orders.notify()

    thread = threading.Thread(target=chatter)
    thread.start()
    began = time.monotonic()
    assert orders.pause(0.3)
    assert time.monotonic() - began >= 0.3
    stop.set()
    thread.join()


def test_a_pause_ends_with_the_training():
    for end in ("over", "orphaned"):
        orders = Orders()

        def ends(orders=orders, end=end):
            setattr(orders, end, True)
            orders.notify()

        threading.Timer(0.05, ends).start()
        assert not orders.pause(600)
        assert orders.ending


def test_haste_is_over_once_there_is_nothing_to_do():
    """A signal to the whole job says that time is short, and nobody takes it back."""
    orders = Orders()
    orders.hurry.set()
    orders.calm()
    assert not orders.hurry.is_set()


def test_haste_that_was_just_asked_for_stays():
    orders = Orders()
    orders.hurry.set()
    orders.notify()
    orders.calm()
    assert orders.hurry.is_set()
