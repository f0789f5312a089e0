"""A record without what names a machine or a person: paths, the host's name, the messages of errors."""

import re
import socket
from collections.abc import Iterator

from repro.records import RunRecord

_PATH = re.compile(r"(?<![\w.~/-])~?(?:/[\w.+@=~-]+){2,}/?")
_SHORTEST_HOST = 3


def nameless(record: RunRecord, host: str | None = None) -> tuple[RunRecord | None, str]:
    """The record as it may be given away, with an empty sentence; or None, and why it may not.

    How an attempt failed keeps the kind of error and loses its message. In the other texts of the provenance
    a path becomes `<path>` and the host's name `<host>`; attempts have it as a salted hash already. A path
    anywhere else decides what the record means, so such a record is not changed but kept back.
    """
    host = socket.gethostname() if host is None else host
    content = record.model_dump(mode="json")
    provenance = content["provenance"]
    for attempt in provenance["attempts"]:
        outcome, colon, message = attempt["outcome"].partition(": ")
        attempt["outcome"] = f"{outcome}{colon}{message.partition(':')[0]}"
    content["provenance"] = _clean(provenance, host)
    for text in _texts({key: value for key, value in content.items() if key != "provenance"}):
        if _PATH.search(text) and text not in (record.run, record.preset):
            return None, f"holds the path {text!r}, which is not for others' eyes"
    return RunRecord.model_validate(content), ""


def _clean(value: object, host: str) -> object:
    if isinstance(value, dict):
        return {key: _clean(each, host) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean(each, host) for each in value]
    if not isinstance(value, str):
        return value
    text = _PATH.sub("<path>", value)
    if len(host) >= _SHORTEST_HOST:
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "<host>", text)
    return text


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, str):
        yield value
