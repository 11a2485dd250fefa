"""Decides how long to wait before a request is sent again."""

from __future__ import annotations

import dataclasses
import email.utils
import random
import time
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Backoff:
    """Waits exponentially longer, with jitter, so that the requests that failed together do not come back together.

    Attributes:
      first: seconds before the second attempt, at most; each later wait is twice as long.
      longest: seconds between attempts, at most.
      patience: the longest wait that a server may ask for; one that wants more is not waited for.
    """

    first: float = 0.5
    longest: float = 30.0
    patience: float = 120.0

    def delay(self, attempt: int, asked: float | None) -> float | None:
        """Returns the seconds to wait before another attempt; None to give up.

        Args:
          attempt: number of the one that failed, from 0.
          asked: what the server's Retry-After said, in seconds. The wait is never shorter.
        """
        if asked is not None and asked > self.patience:
            return None
        ours = min(self.first * 2**attempt, self.longest) * random.uniform(0.5, 1.0)
        return ours if asked is None else asked + ours * 0.1


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Reads how many seconds a reply asks to wait (RFC 9110, 10.2.3: a number or a date; `retry-after-ms` as vendors send it)."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1000)
    except ValueError:
        pass
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
