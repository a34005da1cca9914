"""The settings of a server."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from chainwright._config import Config, MustBe


class ServeConfig(Config):
    """Where a server listens, and what it allows."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; the default is this machine alone.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_key: str | None = Field(
        default=None, min_length=1, description="Bearer token that every request must have (default: none is needed)."
    )
    max_batch: int = Field(default=16, ge=1, description="Rows that decode together.")
    max_waiting: int = Field(
        default=256, ge=1, description="Answers that may wait for a row; more are refused with status 429."
    )
    max_body: int = Field(default=2**20, ge=1, description="Bytes that the body of a request may have.")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="Most tokens that a request may ask for (default: what the model has room for)."
    )
    timeout: Annotated[float, MustBe("a positive number of seconds")] = Field(
        default=600.0, gt=0, description="Seconds after which a request that is not answered ends with an error."
    )
    grace: Annotated[float, MustBe("a number of seconds from 0")] = Field(
        default=30.0, ge=0, description="Seconds that running requests have to finish when the server is stopped."
    )
