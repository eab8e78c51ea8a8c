"""Why a training failed, in words that say what to change. Knows no process and no library."""

from __future__ import annotations

import re

from services.common.errors import TunetrialError
from services.trainer.domain import Exited

_KILLED = {
    -9: "run fewer jobs at once (TUNETRIAL_SLOTS)",
    137: "give its pods more memory (requests and limits in TUNETRIAL_KUBERNETES)",
}
"""What else to do about it, by the exit codes that say so: here, and in a container."""


def words_of_exit(exited: Exited) -> str:
    """Why a process that said nothing may have ended, and what to do. Lines of its log follow where it left any."""
    if exited.code in _KILLED:
        text = (
            "the training process was killed (SIGKILL), most often because memory ran out: lower micro_batch_size or max_length, or "
            f"{_KILLED[exited.code]}, then create the job again"
        )
    elif exited.code is None:
        text = "the training process is gone and nobody saw why; create the job again"
    elif exited.code < 0:
        text = f"the training process was ended by signal {-exited.code}; create the job again"
    else:
        text = f"the training process ended with exit code {exited.code} without a result"
    return f"{text}. Its last lines: {exited.log}" if exited.log else text


def words_of_error(error: BaseException) -> str:
    """What went wrong in a training process, with advice where the cause is known."""
    text = f"{type(error).__name__}: {error}".strip()[:1500]
    if isinstance(error, TunetrialError):
        return error.message
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory|not enough memory", text, re.IGNORECASE):
        return f"out of memory: lower micro_batch_size or max_length (batch_size may stay), or use a smaller rank or base. {text}"
    if re.search(r"no space left on device|disk quota exceeded|storagefull", text, re.IGNORECASE):
        return f"the disk is full: free space under the trainer's data_dir, then create the job again; nothing half-made was left. {text}"
    return f"training stopped: {text}"
