"""Where a catalogue in Milvus is: addresses, and connections to them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from tigerfg.errors import CatalogError, InputError, MissingExtraError

if TYPE_CHECKING:
    from pymilvus import MilvusClient

SCHEME = "milvus://"
PORT = 19530
TOKEN = "MILVUS_TOKEN"  # environment variable: a token, or user:password
_FORMS = (
    "milvus://[user:password@]host[:19530]/collection[?db=...&tls=1&nprobe=...], or "
    "milvus:///path/to/file.db/collection for Milvus Lite"
)
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
# pymilvus asks every 10 s whether a server is there. Milvus Lite takes that for an attack while
# nothing else is asked, and closes the connection ("Too many pings").
_CALM = {"grpc.keepalive_permit_without_calls": False}


def is_milvus(place: object) -> bool:
    """Whether a catalogue's place is an address of Milvus."""
    return isinstance(place, str) and place.startswith(SCHEME)


@dataclass(frozen=True)
class MilvusAddress:
    """A collection of a Milvus server, or of a file of Milvus Lite.

    Attributes:
        uri: what pymilvus connects to. collection: its name. token, database: "" for none.
        nprobe: lists probed by searches, in place of what was tuned; None for that.
        lite: whether it is a file.
    """

    uri: str
    collection: str
    token: str = ""
    database: str = ""
    nprobe: int | None = None
    lite: bool = False

    @classmethod
    def parse(cls, text: str) -> MilvusAddress:
        """From one of the forms of an address.

        Raises:
            InputError: none of them; names the part and the forms.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise InputError(f"catalogue address {_shown(text)}: {error}; give {_FORMS}") from None
        folder, _, collection = parts.path.rpartition("/")
        settings = dict(parse_qsl(parts.query, keep_blank_values=True))
        wrong = None
        nprobe = settings.pop("nprobe", None)
        database, tls = settings.pop("db", ""), settings.pop("tls", "")
        if not _COLLECTION.fullmatch(collection):
            wrong = f"{collection!r} is no name of a collection: letters, digits and _"
        elif nprobe is not None and not re.fullmatch("[1-9][0-9]{0,5}", nprobe):
            wrong = f"nprobe {nprobe!r} is no whole number of at least 1"
        elif tls not in ("", "0", "1"):
            wrong = f"tls {tls!r} is neither 0 nor 1"
        elif settings:
            wrong = f"{min(settings)!r} is no setting of an address"
        elif not parts.hostname and not folder:
            wrong = "neither a host nor a file"
        elif parts.hostname and folder:
            wrong = f"{folder!r} between host and collection; a database is given as ?db="
        if wrong:
            raise InputError(f"catalogue address {_shown(text)}: {wrong}; give {_FORMS}")
        probed = None if nprobe is None else int(nprobe)
        if not parts.hostname:
            return cls(unquote(folder), collection, nprobe=probed, lite=True)
        token = os.environ.get(TOKEN, "")
        if parts.username is not None:
            token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        uri = f"http{'s' if tls == '1' else ''}://{host}:{port or PORT}"
        return cls(uri, collection, token, database, probed)

    def __str__(self) -> str:
        """The address without secrets."""
        place = self.uri if self.lite else self.uri.partition("://")[2]
        database = f"?db={self.database}" if self.database else ""
        return f"{SCHEME}{place}/{self.collection}{database}"

    def connect(self, timeout: float = 10.0) -> MilvusClient:
        """A client.

        Raises:
            CatalogError: no server answers there within ``timeout`` seconds, or the file cannot be
                used.
            MissingExtraError: pymilvus, or Milvus Lite for a file, is not installed.
        """
        if self.lite and not Path(self.uri).parent.is_dir():
            raise CatalogError(f"{self}: {Path(self.uri).parent} is no directory: make it first")
        try:
            from pymilvus import MilvusClient

            if self.lite:
                import milvus_lite  # noqa: F401 - what MilvusClient starts for a file
        except ImportError as error:
            package = "milvus-lite" if self.lite else "pymilvus"
            raise MissingExtraError("a catalogue in Milvus", package, "milvus") from error
        with explained(self, "connect"):
            return MilvusClient(
                uri=self.uri,
                token=self.token,
                db_name=self.database,
                timeout=timeout,
                grpc_options=_CALM if self.lite else {},
            )


@contextlib.contextmanager
def explained(address: MilvusAddress, action: str) -> Iterator[None]:
    """Turn what pymilvus raises into a CatalogError of one line."""
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError, OSError) as error:
        text = getattr(error, "message", None) or str(error)
        reason = " ".join(str(text).split())[:300]
        raise CatalogError(f"{address}: cannot {action}: {reason}") from error


def _shown(text: str) -> str:
    """An address without what might be a password."""
    return repr(re.sub(r"//[^@/]*@", "//***@", text))
