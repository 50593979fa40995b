"""Signals as a wish: the first one is noted, the second one interrupts."""

import os
import signal

import pytest

from pipeline.system.stop import StopSignals


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)  # a shell's background job ignores it, so it need not be Python's own
    with StopSignals() as signals:
        assert not signals.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
