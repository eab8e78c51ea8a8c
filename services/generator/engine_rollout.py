"""What happens when an engine that takes adapters only at its start is to have another one, and nobody here may start it."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import FailedPrecondition


class ManualRollout:
    """Starts nothing: says what the operator has to do."""

    async def add(self, base: str, listed: Sequence[str], adapter: str, path: str) -> None:
        """Raises FailedPrecondition ENGINE_RESTART_NEEDED, always."""
        start_list = ",".join([*(f"{name}=<folder of {name}>" for name in listed), f"{adapter}={path}"])
        message = (
            "the engine of {base} takes adapters only at its start, and {adapter} was not among them: start every replica of it with "
            "LORA_ADAPTERS={start_list} (paths as the engine sees them), name {adapter} in the adapters of {base} in TUNETRIAL_ENGINES, "
            "start the generator anew and load the adapter again"
        )
        raise FailedPrecondition("ENGINE_RESTART_NEEDED", message, base=base, adapter=adapter, start_list=start_list)

    async def remove(self, adapter: str) -> None:
        """Nothing: it brought none."""

    async def close(self) -> None:
        """Nothing is open."""
