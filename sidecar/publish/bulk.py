"""Documents for Elasticsearch's and OpenSearch's `_bulk`. Each carries an id made of its content: sent twice, it is kept once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from sidecar.publish.ecs import Json, line
from sidecar.publish.post import Answer
from sidecar.publish.sink import Away

BATCH = 500
"""Documents of one request: what a busy engine takes within its deadline."""
_LATER = frozenset({429, 500, 502, 503, 504})
_THERE = 409
"""An id that is known already: we had sent it before."""


def item(document: Json, index: str) -> bytes:
    """What to do, and with what: two lines. `create` is all that a data stream permits."""
    source = line(document)
    what = {"create": {"_index": index, "_id": hashlib.blake2s(source, digest_size=16).hexdigest()}}
    return line(what) + source


def judge(said: bytes, batch: Sequence[bytes]) -> Answer:
    """Status 200 says nothing: each item has a status of its own, in the order of the request."""
    try:
        results = [next(iter(each.values())) for each in json.loads(said)["items"]]
        statuses = [int(each["status"]) for each in results]
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration, RecursionError) as error:
        raise Away("its answer is none of a _bulk: is it the right address?") from error
    if len(statuses) != len(batch):
        raise Away(f"it answers for {len(statuses)} of {len(batch)} documents")
    again = [item for item, status in zip(batch, statuses, strict=True) if status in _LATER]
    refused = [
        each for each, status in zip(results, statuses, strict=True) if not (200 <= status < 300 or status == _THERE or status in _LATER)
    ]
    why = refused[0] if refused else next((each for each, status in zip(results, statuses, strict=True) if status in _LATER), None)
    return Answer(again, len(refused), json.dumps(why)[:300] if why else "")


__all__ = ["BATCH", "item", "judge"]
