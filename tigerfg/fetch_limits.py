"""What fetching pictures behind addresses may take."""

from __future__ import annotations

from dataclasses import dataclass

from tigerfg.settings import Checked, Count, NotNegative, Positive


@dataclass(frozen=True)
class FetchLimits(Checked):
    """What fetching may take.

    Attributes:
        connections: fetches at once.
        ahead: pictures that are fetched before they are needed, and at least ``connections``.
        timeout: seconds for connecting, and between two pieces of an answer.
        deadline: seconds for one try of a picture, with all of its pieces and redirects.
        max_bytes: of a picture; a larger one is rejected as soon as that is known.
        attempts: tries of a picture; what is refused for good (404, ...) is not tried again.
        longest_wait: seconds between two tries, whatever the server asks for.

    Raises:
        InputError: a number is out of range.
    """

    connections: Count = 32
    ahead: Count = 128
    timeout: Positive = 20.0
    deadline: Positive = 120.0
    max_bytes: Count = 32 << 20
    attempts: Count = 4
    longest_wait: NotNegative = 30.0
