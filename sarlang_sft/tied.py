"""`python -m sarlang_sft.tied COMMAND ...` becomes a command that gets SIGTERM when the process that started it dies.

Without it torchrun outlives a killed sweep, and ranks outlive a killed torchrun. Linux only; elsewhere they do.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of linux/prctl.h; kept by execve

if __name__ == "__main__":
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before this process was tied to it
        os.kill(os.getpid(), signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])
