"""Calls that hang or fail."""

import subprocess
import sys
from threading import Event

import pytest

from sarlang_sft.bounded_calls import BoundedCalls


def test_what_a_call_does_or_why_it_fails_comes_back() -> None:
    calls, done = BoundedCalls(0), []
    assert calls.run(lambda: done.append(1), 10) == "" and done == [1]
    assert calls.run(lambda: {}["key\nof two lines"], 10) == "KeyError: 'key\\nof two lines'"
    assert calls.run(lambda: sys.exit("bad\nend"), 10) == "SystemExit: bad end"
    assert calls.run(lambda: done.append(2), None) == "" and done == [1, 2]


@pytest.mark.parametrize("hanging", [1, 2])
def test_so_many_calls_may_hang_and_others_still_run(hanging: int) -> None:
    calls, release = BoundedCalls(hanging), Event()
    for _ in range(hanging):
        assert calls.run(release.wait, 0.05) == "no answer within 0.05 seconds"
    assert calls.run(lambda: None, 10) == ""
    release.set()


def test_a_call_that_hangs_lets_the_process_end_and_others_run_while_it_ends() -> None:
    program = (
        "import atexit, time\n"
        "from sarlang_sft.bounded_calls import BoundedCalls\n"
        "calls = BoundedCalls(1)\n"
        "atexit.register(lambda: calls.run(lambda: print('at the end'), 10))\n"
        "print(calls.run(lambda: time.sleep(600), 0.1))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ran.stdout.split("\n") == ["no answer within 0.1 seconds", "at the end", ""] and ran.returncode == 0
