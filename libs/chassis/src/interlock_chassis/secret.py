"""A value that no log line, traceback or copy may show."""

import hmac
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

from interlock_chassis.errors import ConfigError

T = TypeVar("T", str, bytes)

# No secret of ours is larger; a larger file is the wrong file.
_MAX_FILE_BYTES = 64 * 1024


class Secret(Generic[T]):
    """Hold a secret so that only `reveal()` shows it.

    `str`, `format`, f-strings, `copy`, `deepcopy` (and so `asdict`), `pickle`,
    `hash` and `json` raise TypeError. Only `repr` answers, with a fixed text:
    tracebacks, asyncio and dataclasses call it while another error is being
    reported, and raising there would hide that error. Equality takes constant
    time and is False for anything that is not a Secret of the same type.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: T = value

    @classmethod
    def from_file(cls, path: Path, *, variable: str, document: bool = False) -> "Secret[str]":
        """Read a secret from a file.

        Args:
            path: The file; UTF-8, at most 64 KiB.
            variable: The environment variable that named it, for the error.
            document: The file is JSON or PEM text, where a newline at the end
                is not part of the secret; otherwise such a newline is refused.

        Raises:
            ConfigError: The file cannot be read, is blank, too large, or ends
                in a newline. The message never holds the content.
        """
        try:
            with path.open("rb") as file:
                raw = file.read(_MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(variable, f"cannot read the file: {error.strerror}") from None
        if len(raw) > _MAX_FILE_BYTES:
            raise ConfigError(variable, f"the file is larger than {_MAX_FILE_BYTES} bytes")
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            # The original error carries the bytes.
            raise ConfigError(variable, "the file is not UTF-8 text") from None
        if not text.strip():
            raise ConfigError(variable, "the file is blank")
        if not document and text != text.rstrip("\r\n"):
            raise ConfigError(
                variable, "the file ends in a newline; write it without one, as printf '%s' does"
            )
        return Secret(text)

    def reveal(self) -> T:
        """Return the value. Call it where the value leaves us, nowhere else."""
        return self._value

    def __repr__(self) -> str:
        return "<Secret>"

    def __str__(self) -> str:
        return self._refuse("str")

    def __format__(self, spec: str) -> str:
        return self._refuse("format")

    def __bytes__(self) -> bytes:
        return self._refuse("bytes")

    def __copy__(self) -> "Secret[T]":
        return self._refuse("copy")

    def __deepcopy__(self, memo: object) -> "Secret[T]":
        return self._refuse("deepcopy")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self._refuse("pickle")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return False
        mine, theirs = self._value, other._value
        if isinstance(mine, str) != isinstance(theirs, str):
            return False
        return hmac.compare_digest(_as_bytes(mine), _as_bytes(theirs))

    # A hash of a secret in a set or dict would be a way to test guesses.
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        return True

    @staticmethod
    def _refuse(how: str) -> NoReturn:
        raise TypeError(f"a Secret refuses {how}; call reveal() where the value is used")


def _as_bytes(value: str | bytes) -> bytes:
    return value.encode(errors="surrogatepass") if isinstance(value, str) else value
