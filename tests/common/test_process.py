"""Processes: they die with their parent, count their CPU time, announce themselves and end with the right code."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from fogline.common import process
from fogline.common.errors import CapacityError

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", '''
import sys, time
from fogline.common.process import die_with_parent
die_with_parent(int(sys.argv[1]))
print("up", flush=True)
time.sleep(60)
''', str(__import__("os").getpid())], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


def test_a_child_dies_with_its_parent(wait_until: object) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    code = "from fogline.common.process import die_with_parent; die_with_parent(1 << 22); print('lives')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "")


def test_cpu_seconds_count_running_and_ended_children() -> None:
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(flush=True)\n"
    before = process.cpu_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", burn + "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = process.cpu_seconds()
    ended = process.cpu_seconds()
    assert running - before >= 0.28
    assert ended >= running - 0.02  # the kernel's clock ticks are 10 ms


def test_the_ready_line(capsys: pytest.CaptureFixture[str]) -> None:
    process.announce_ready(port=7400, metrics_port=-1)
    process.announce_ready(metrics_port=9100)
    assert capsys.readouterr().out == 'ready {"metrics_port": -1, "port": 7400}\nready {"metrics_port": 9100}\n'


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> int:
        raise error

    assert process.run_main(lambda: None) == 0
    assert process.run_main(lambda: fail(CapacityError("disk /x is full"))) == CapacityError.exit_code
    assert capsys.readouterr().err == "CapacityError: disk /x is full\n"
    assert process.run_main(lambda: fail(KeyboardInterrupt())) == 130
    assert process.run_main(lambda: fail(ZeroDivisionError("oops"))) == 9
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_signals_end_it_cleanly(kind: str) -> None:
    body = {
        "threads": "event = process.stop_event(); print(flush=True); event.wait(); print('clean')",
        "asyncio": (
            "import asyncio\nasync def main():\n    event = process.aio_stop_event(); print(flush=True)\n"
            "    await event.wait(); print('clean')\nasyncio.run(main())"
        ),
    }[kind]
    code = f"from fogline.common import process\n{body}"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        began = time.monotonic()
        child.terminate()
        assert child.stdout.read() == "clean\n"
        assert child.wait(5) == 0
        assert time.monotonic() - began < 5
