"""What a user may expect to go wrong in a trial. Knows no stage and no service; the command line maps each class to an exit code."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 5


class TrialError(Exception):
    """Base of all expected failures: the command ends with `exit_code` and prints the message without a traceback."""

    exit_code = 1


class UserError(TrialError):
    """A mistake in what the user wrote or gave. The message says what to do."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used. `line` counts from 1 (for Parquet: the row; for a file that is bad as a whole: 1)."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


class DataError(UserError):
    """A data file that is broken, empty or of another form. `rows_read` counts the rows seen, bad ones included."""

    def __init__(self, problem: str, rows_read: int = 0, bad_rows: tuple[BadRow, ...] = (), advice: str = "") -> None:
        shown = [f"  {row}" for row in bad_rows[:_SHOWN]]
        if len(bad_rows) > _SHOWN:
            shown.append(f"  ... and {len(bad_rows) - _SHOWN} more")
        rows = f"{rows_read} row{'' if rows_read == 1 else 's'} read"
        super().__init__("\n".join([f"{problem} ({rows})", *shown, *([advice] if advice else [])]))
        self.rows_read = rows_read
        self.bad_rows = bad_rows
