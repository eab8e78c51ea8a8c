"""All readers by the names that a spec uses. Options of a reader are the keyword parameters of its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flows.data.beir import read_beir
from flows.data.bioasq import read_bioasq
from flows.data.natural_questions import read_nq, read_nq_open
from flows.data.qasper import read_qasper
from flows.data.source import Source
from flows.data.tables import read_table

READERS: Mapping[str, Callable[..., Source]] = {
    "beir": read_beir,
    "bioasq": read_bioasq,
    "nq": read_nq,
    "nq_open": read_nq_open,
    "qasper": read_qasper,
    "table": read_table,
}
