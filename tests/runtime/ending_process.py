"""One of several processes that do not train: it joins the others and ends as told; test_failing says how."""

import os
import signal
import sys
import time

import jax

from croc_jax.runtime.failing import failing_together
from croc_jax.runtime.processes import gather_texts, join_processes

SECONDS = 20.0


def main(address, count, index, deed):
    join_processes(address, count, index)
    with failing_together():
        gather_texts("met")
        if deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif deed == "wait":
            time.sleep(SECONDS)
        elif deed == "wait in barrier":
            # As a collective does, which no signal and no other thread of Python interrupts.
            gather_texts("never")
        elif deed == "fail later":
            time.sleep(0.5)
            raise OSError("disk gone")
        elif deed == "need memory":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: NCCL: out of memory")
        print("left", flush=True)
    sys.exit(75)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
