"""A process that does cells: it is told each in a line on standard input, and answers each in a line.

Whatever a library prints goes to standard error, which is the worker's log. It ends with its input, and by itself if
the process that started it is gone, which a kernel that hangs does not let it see otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import IO, Any

FAILED = "failed"


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    for line in sys.stdin:
        _answer(json.loads(line), answers)


def _answer(work: dict[str, Any], answers: IO[str]) -> None:
    try:
        from .work import do

        found = do(work)
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines()
        found = {"status": FAILED, "reason": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    from attnres_compile.cli.output import json_text

    answers.write(json.dumps(json.loads(json_text(found))) + "\n")
    answers.flush()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
