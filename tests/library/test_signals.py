"""Being asked to stop: by a person, a scheduler, or a closed pipe."""

import signal

import pytest

from mingpt_lightning.signals import Stopped, StopSignals
from tests.common import python


@pytest.fixture
def stop():
    signals = StopSignals()
    signals.install()
    yield signals
    signals.restore()


def test_outside_of_training_a_signal_ends_the_process_at_once(stop):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
        stop.received = None
        with pytest.raises(Stopped) as caught:
            signal.raise_signal(number)
        assert (caught.value.code, caught.value.number) == (code, number)


def test_in_training_it_waits_until_asked_for(stop):
    stop.waits = True
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)
    assert stop.received == signal.SIGHUP


def test_what_the_parent_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signals = StopSignals()
    try:
        signals.install()
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is None
    finally:
        signals.restore()
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_ends_it_at_once():
    code = (
        "import signal; from mingpt_lightning.signals import STOP\n"
        "STOP.install(); STOP.waits = True\n"
        "signal.raise_signal(signal.SIGINT); print('first', flush=True); signal.raise_signal(signal.SIGINT)\n"
        "print('second')"
    )
    result = python(code, check=False)
    assert (result.returncode, result.stdout) == (130, "first\n")
