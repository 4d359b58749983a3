"""The log in one SQLite file: the default on one machine, durable with every acknowledgement."""

from .integrity import Report, check_file
from .log import ReadOnlyLog, SqliteLog, check_there

__all__ = ["ReadOnlyLog", "Report", "SqliteLog", "check_file", "check_there"]
