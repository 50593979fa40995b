import os
import signal

import pytest

from pipeline.system.stop import sigterm_interrupts


def test_sigterm_interrupts_within_the_block_and_is_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
