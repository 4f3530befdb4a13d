"""Routes that answer with features: the WenLan API that was closed in 2023, and OpenAI's form.

    POST /image_query              multipart file `image`     -> {"emb_dim", "emb_type": "image", "embedding"}
    GET  /text_query?text=         the same, "text"
    POST /v1/embeddings            OpenAI: input is a text, or a list of texts
    GET  /v1/models                the one model

Features are unit rows, float32; base64 is of their bytes, little-endian. A text longer than the towers read is cut as
in training. `dimensions` other than D is refused: these features were not trained to be cut.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import pydantic_core
from fastapi import APIRouter, File, Query, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from training.serve.refusals import Refused, bad_request
from training.serve.service import Service
from training.serve.towers import Features


class Embedding(BaseModel):
    """Answer of the released API."""

    emb_dim: int
    emb_type: Literal["image", "text"]
    embedding: list[float]


class EmbeddingsRequest(BaseModel):
    """OpenAI's request. Unknown fields are ignored, as by OpenAI."""

    model_config = ConfigDict(extra="ignore")
    input: str | list[str] | list[int] | list[list[int]] = Field(description="texts")
    model: str = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None


class Row(BaseModel):
    """One feature."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class Usage(BaseModel):
    """Tokens of all texts, their marks included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"] = "list"
    data: list[Row]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """The model, as /v1/models lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "wenlan"
    recipe: str
    dimensions: int


class ModelList(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def json_of(value: Any) -> Response:
    """A JSON answer of plain values, faster than FastAPI's own for thousands of numbers."""
    return Response(pydantic_core.to_json(value), media_type="application/json")


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["embeddings"])

    @router.post("/image_query", response_model=Embedding)
    async def image_query(image: Annotated[UploadFile, File()]) -> Response:
        """Feature of a picture (the released WenLan API)."""
        embedded = await service.pictures([await image.read()], param="image")
        return _released_answer("image", embedded.row_D)

    @router.get("/text_query", response_model=Embedding)
    async def text_query(text: Annotated[str, Query()]) -> Response:
        """Feature of a text (the released WenLan API)."""
        return _released_answer("text", (await service.texts([text], param="text")).row_D)

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
    async def embeddings(request: EmbeddingsRequest) -> Response:
        """Features of texts, in OpenAI's format."""
        return await _embeddings(service, request)

    @router.get("/v1/models", response_model=ModelList)
    async def models() -> Response:
        return json_of(ModelList(data=[_card(service)]).model_dump())

    @router.get("/v1/models/{model}", response_model=ModelCard)
    async def model(model: str) -> Response:
        _check_model(service, model)
        return json_of(_card(service).model_dump())

    return router


def _card(service: Service) -> ModelCard:
    recipe = service.checkpoint.config.recipe
    return ModelCard(id=service.name, created=int(service.started), recipe=recipe, dimensions=service.width)


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        text = f"unknown model {name[:100]!r}; this server serves {service.name!r}"
        raise Refused(404, "model_not_found", text, param="model")


def _released_answer(kind: Literal["image", "text"], row_D: Features) -> Response:
    return json_of({"emb_dim": len(row_D), "emb_type": kind, "embedding": row_D.tolist()})


async def _embeddings(service: Service, request: EmbeddingsRequest) -> Response:
    if request.model:
        _check_model(service, request.model)
    if request.dimensions not in (None, service.width):
        text = (
            f"the features have {service.width} numbers and cannot be shortened; "
            f"leave dimensions out, or give {service.width}"
        )
        raise bad_request("dimensions", text, "dimensions")
    embedded = await service.texts(_texts(request))
    data = [
        {"object": "embedding", "index": index, "embedding": _encode_row(row_D, request.encoding_format)}
        for index, row_D in enumerate(embedded.rows_ND)
    ]
    usage = {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens}
    return json_of({"object": "list", "data": data, "model": service.name, "usage": usage})


def _texts(request: EmbeddingsRequest) -> list[str]:
    """Texts of a request. Raises Refused."""
    listed = [request.input] if isinstance(request.input, str) else request.input
    if not listed:
        raise bad_request("empty", "input is empty", "input")
    texts: list[str] = []
    for number, one in enumerate(listed):
        if not isinstance(one, str):
            param = f"input[{number}]" if len(listed) > 1 else "input"
            raise bad_request("token_ids", "token ids are not supported; send texts", param)
        texts.append(one)
    return texts


def _encode_row(row_D: Features, wanted: str | None) -> list[float] | str:
    if wanted == "base64":
        return base64.b64encode(row_D.astype("<f4").tobytes()).decode()
    numbers: list[float] = row_D.tolist()
    return numbers
