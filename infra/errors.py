"""Every error that medloom raises on purpose. The type decides what happens next, never the text.

    MedloomError
      ConfigError          the user's recipe, option or environment is wrong: the run stops before any work
      ItemError            one item or row did not make it; carries a reason code
        Transient          may succeed if tried again: retried with backoff inside the stage, then a retryable reject
        Terminal           will not succeed if tried again: a reject at once
        Dropped            left out on purpose by a stated rule: a reject with outcome "dropped"

Anything else that escapes a stage is a bug and stops its partition.

>>> raise Terminal("IMAGE_TRUNCATED", "7 of 12 kB present; fetch the file again")
"""

from __future__ import annotations


class MedloomError(Exception):
    """Root of the tree; the message is written for the person who has to act on it."""


class ConfigError(MedloomError):
    """A recipe, option or environment that cannot work; nothing was started."""


class ItemError(MedloomError):
    """One item or row did not make it.

    `code` is a short upper-case word that stays stable across versions; `message` says what happened and what to do.
    """

    retryable = False
    outcome = "failed"

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class Transient(ItemError):
    """May succeed if tried again: a timeout, a 429, a file that changed while it was read."""

    retryable = True

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after = retry_after
        """Seconds the other side asked us to wait, or None."""


class Terminal(ItemError):
    """Will not succeed if tried again: a corrupt file, an unsupported encoding, a refusal."""


class Dropped(ItemError):
    """Left out on purpose, by a rule that the message names."""

    outcome = "dropped"
