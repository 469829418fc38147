"""Runs one tier's command so that it can't outlive the launcher: `python -m fogline.deploy.local.child MODULE ARGS…`.

A wrapper instead of `preexec_fn`: that runs Python between fork and exec, which deadlocks now and then in a process
with threads.
"""

from __future__ import annotations

import runpy
import sys

from fogline.common.process import die_with_parent


def main() -> None:
    """Tie this process to its parent, then become the module that the command line names."""
    die_with_parent()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
