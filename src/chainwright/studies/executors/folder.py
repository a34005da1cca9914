"""The executor that computes nothing: the study's folder is made, and `chainwright study work FOLDER` does the rest."""

from __future__ import annotations

from collections.abc import Iterator

from chainwright._errors import BadInput
from chainwright._registry import register
from chainwright.studies.executors.base import Computed, Executor, Stage


@register("executor", "folder")
class LeftToWorkers(Executor):
    """Leaves every unit to processes of `chainwright study work`."""

    computes = False

    def __init__(
        self, *, workers: int | None = None, device: str | None = None, trust_remote_code: bool = False
    ) -> None:
        """Take no number of workers: each is started by its own command.

        Raises:
            BadInput: A number of workers is asked for.
        """
        super().__init__(workers=workers, device=device, trust_remote_code=trust_remote_code)
        if workers is not None:
            raise BadInput(
                f"The executor 'folder' starts no workers, and {workers} were asked for; drop --workers, and start "
                "`chainwright study work FOLDER` as often as you like, on any machine that shares the folder."
            )

    def compute(self, stage: Stage) -> Iterator[Computed]:
        """Compute nothing."""
        return iter(())
