"""An encoder that starts when it is first needed: opening a catalogue stays quick."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from tigerfg.encoder import Encoder
from tigerfg.errors import InputError

if TYPE_CHECKING:
    from tigerfg.bundle import Bundle
    from tigerfg.engines import Engine


class LazyEncoder:
    """A bundle's encoder; safe for threads.

    Args:
        engine, precision, threads: as `tigerfg.engines.open_engine` takes them, or an engine that
            is open already, which the caller closes.

    Raises:
        EngineError, InputError, MissingExtraError: of a request that cannot be met, where that is
            known before the start.
    """

    def __init__(
        self, bundle: Bundle, engine: str | Engine, precision: str, threads: int | None
    ) -> None:
        if isinstance(engine, str):
            from tigerfg.engines import check_request

            check_request(bundle, engine, precision, threads)
        elif not hasattr(engine, "encode_items"):
            raise InputError(f"engine {engine!r}: give a name, or an engine that is open")
        self.bundle = bundle
        self._engine, self._precision, self._threads = engine, precision, threads
        self._encoder: Encoder | None = None
        self._lock = threading.Lock()

    def get(self) -> Encoder:
        """The encoder, started if it was not."""
        with self._lock:
            if self._encoder is None:
                engine = self._engine
                if isinstance(engine, str):
                    from tigerfg.engines import open_engine

                    engine = open_engine(self.bundle, engine, self._precision, self._threads)
                self._encoder = Encoder(self.bundle, engine)
            return self._encoder

    @property
    def engine(self) -> str | None:
        """Name, precision and device of what computes; None before the start."""
        if self._encoder is None:
            return None
        info = self._encoder.engine.info
        return f"{info.name} {info.precision} on {info.device}"

    def close(self) -> None:
        """Stop the threads, and the engine if it was started here; may be started again."""
        with self._lock:
            encoder, self._encoder = self._encoder, None
            if encoder is not None:
                encoder.close()
                if isinstance(self._engine, str):
                    encoder.engine.close()
