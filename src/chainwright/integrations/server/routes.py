"""The endpoints: read a request, have it written, send the answer whole or as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from chainwright.integrations.server.answers import Body
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.metrics import Metrics
from chainwright.integrations.server.protocol import ChatAsked, Refused, TextAsked, error_body, parse
from chainwright.integrations.server.reply import Reply

T = TypeVar("T")
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics")


class Gone(Exception):
    """The client does not wait any more."""


class _Client:
    """Who waits for a response."""

    def __init__(self, request: Request):
        self._gone = asyncio.ensure_future(_disconnected(request))

    async def waits_for(self, work: Awaitable[T]) -> T:
        """Return what `work` does; raise Gone if the client leaves first."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Gone
            return task.result()
        finally:
            task.cancel()

    def close(self) -> None:
        """Stop watching."""
        self._gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request.

    Raises:
        Refused: It is too long.
    """
    read = bytearray()
    async for piece in request.stream():
        read += piece
        if len(read) > most:
            raise Refused(413, f"The body of the request has more than {most} bytes, which this server does not read.")
    return bytes(read)


def router(service: Service, metrics: Metrics, max_body: int) -> APIRouter:
    """Return the endpoints of a model that is served."""
    routes = APIRouter()

    async def answer(request: Request, kind: type[ChatAsked] | type[TextAsked]) -> Response:
        reply = Reply(service, parse(kind, await _body(request, max_body)))
        reply.start()
        if reply.streams:
            return StreamingResponse(events(request, reply), media_type="text/event-stream")
        client = _Client(request)
        try:
            return JSONResponse(await client.waits_for(reply.whole()))
        except Gone:
            return Response(status_code=499)  # nobody reads it
        finally:
            client.close()
            _close(reply)

    async def events(request: Request, reply: Reply) -> AsyncIterator[str]:
        client, chunks = _Client(request), reply.chunks()
        try:
            while (chunk := await client.waits_for(anext(chunks, None))) is not None:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        except Gone:
            pass
        except Refused as error:
            yield f"data: {json.dumps(error_body(error.status, error.message, error.code))}\n\n"
        finally:
            client.close()
            _close(reply)

    def _close(reply: Reply) -> None:
        reply.cancel()  # harmless where all is over
        metrics.count(reply.choices)

    @routes.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await answer(request, ChatAsked)

    @routes.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, TextAsked)

    @routes.get("/v1/models")
    async def models() -> Body:
        return {"object": "list", "data": [_entry(name) for name in service.names]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> Body:
        service.repairs(name)
        return _entry(name)

    def _entry(name: str) -> Body:
        repairs = list(service.repairs(name))
        return {"id": name, "object": "model", "created": 0, "owned_by": "chainwright", "repairs": repairs}

    return routes
