"""One try: the request is sent, and what comes back becomes pieces of the reply. Sync and async, the same steps.

Which try it is says `attempts`, what the bytes mean `exchange`, how they travel `http`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Any

from ..conversation import Piece
from ..errors import RemoteConnectionError, StreamInterruptedError
from .asking import aread_all, read_all
from .attempts import Call, raise_unless_whole
from .exchange import Exchange
from .http import AsyncResponse, SyncResponse, aopen, open_

__all__ = ["apieces_of", "pieces_of"]


def pieces_of(call: Call, exchange: Exchange, client: Any) -> Generator[Piece, None, None]:
    """The reply's pieces as the server sends them; closing this closes the connection.

    Raises:
        RemoteError, UnsupportedSchemaError: see `errors`.
    """
    response: SyncResponse | None = None
    try:
        try:
            response = open_(call.request(exchange), exchange.limits, exchange.wait(), client)
            good = exchange.begin(response.status, response.headers)
            if not good:
                raise exchange.refused(response.status, read_all(response))
        except TimeoutError:
            raise exchange.late() from None
        while not exchange.done:
            try:
                chunk = response.read(exchange.wait())
            except TimeoutError:
                raise_unless_whole(exchange.expired())
            except StreamInterruptedError as error:
                raise_unless_whole(exchange.cut(error), error)
            else:
                yield from exchange.push(chunk)
                if not chunk:
                    response.finish()
    except RemoteConnectionError as error:
        raise exchange.signed(error) from error.__cause__
    finally:
        if response is not None:
            response.close()
    yield exchange.final


async def apieces_of(call: Call, exchange: Exchange, client: Any) -> AsyncGenerator[Piece, None]:
    """As `pieces_of`, natively async."""
    response: AsyncResponse | None = None
    try:
        try:
            request = await call.arequest(exchange)
            response = await aopen(request, exchange.limits, exchange.wait(), client)
            good = exchange.begin(response.status, response.headers)
            if not good:
                raise exchange.refused(response.status, await aread_all(response))
        except TimeoutError:
            raise exchange.late() from None
        while not exchange.done:
            try:
                chunk = await response.read(exchange.wait())
            except TimeoutError:
                raise_unless_whole(exchange.expired())
            except StreamInterruptedError as error:
                raise_unless_whole(exchange.cut(error), error)
            else:
                for piece in exchange.push(chunk):
                    yield piece
                if not chunk:
                    response.finish()
    except RemoteConnectionError as error:
        raise exchange.signed(error) from error.__cause__
    finally:
        if response is not None:
            response.close()
    yield exchange.final
