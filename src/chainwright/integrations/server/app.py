"""The web application around an engine, and the server that runs it."""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Sequence

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chainwright._errors import BadInput
from chainwright._version import __version__
from chainwright.integrations.server.asking import Service
from chainwright.integrations.server.config import ServeConfig
from chainwright.integrations.server.metrics import Metrics
from chainwright.integrations.server.protocol import Refused, error_body
from chainwright.integrations.server.routes import ENDPOINTS, router


def make_app(service: Service, config: ServeConfig | None = None) -> FastAPI:
    """Return the application that serves a model."""
    config = config or ServeConfig()
    metrics = Metrics(service.engine)
    app = FastAPI(title="Chainwright", version=__version__, docs_url=None, redoc_url=None)

    async def check_key(request: Request) -> None:
        if config.api_key is None:
            return
        sent = request.headers.get("authorization", "")
        if not hmac.compare_digest(sent.encode(), f"Bearer {config.api_key}".encode()):
            raise Refused(
                401, "This server needs its key as a bearer token: Authorization: Bearer KEY.", "invalid_api_key"
            )

    app.include_router(router(service, metrics, config.max_body), dependencies=[Depends(check_key)])

    @app.get("/metrics", dependencies=[Depends(check_key)])
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    async def health() -> JSONResponse:
        load, is_running = service.engine.load, service.engine.is_running
        body = {"status": "ok" if is_running else "stopped", "rows": load.n_rows, "waiting": load.n_waiting}
        return JSONResponse(body, 200 if is_running else 503)

    app.add_middleware(_Counting, metrics=metrics)
    _answer_errors(app)
    app.state.service, app.state.metrics = service, metrics
    return app


class _Counting:
    """Counts requests by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when its response begins."""

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in ENDPOINTS else "other"
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, counting)


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return _error(error.status, error.message, error.code)

    @app.exception_handler(BadInput)
    async def bad_input(request: Request, error: BadInput) -> JSONResponse:
        return _error(400, str(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path}"
        return _error(error.status_code, f"There is no {what} here ({error.detail}); the endpoints are under /v1.")

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return _error(500, f"The server made a mistake ({type(error).__name__}); it continues with other requests.")


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    return JSONResponse(error_body(status, message, code), status)


def listen(config: ServeConfig) -> socket.socket:
    """Return a socket that listens where the config says.

    Raises:
        BadInput: The port is taken, or the address is none of this machine.
    """
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise BadInput(f"Cannot listen on {config.host}: {error.strerror or error}; take 127.0.0.1.") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise BadInput(
            f"Cannot listen on {config.host} port {config.port}: {error.strerror or error}; another server may be "
            "running there. Choose another --port, or 0 for a free one."
        ) from error
    return listening


class Server(uvicorn.Server):
    """Serves until it is stopped by a signal; running requests then finish, or end when their time is up."""

    def __init__(self, service: Service, config: ServeConfig):
        self.service, self.grace = service, config.grace
        super().__init__(
            uvicorn.Config(
                make_app(service, config),
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=int(config.grace) + 5,
            )
        )

    async def shutdown(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """Take no more requests, and let the engine end those that are running."""
        stopping = asyncio.create_task(asyncio.to_thread(self.service.engine.stop, self.grace))
        await super().shutdown(None if sockets is None else list(sockets))
        await stopping
        self._captured_signals.clear()  # they were asked for and have been followed: not an error of the process
